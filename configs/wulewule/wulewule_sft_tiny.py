# wulewule_sft_tiny: the instruction tuning of the recipe on a tiny InternLM2 that the package makes itself. Runs on a CPU in minutes.
# 指令微调的迷你版：在软件包自带的微型 InternLM2 上运行，CPU 数分钟即可，用于体验与测试。
#
#   train       xtuner train wulewule_sft_tiny --work-dir work_dirs/sft
#   processes   NPROC_PER_NODE=2 xtuner train wulewule_sft_tiny --work-dir work_dirs/sft --deepspeed deepspeed_zero1_fp32
#   your model  WULEWULE_MODEL=/path/or/hub-id xtuner train …   (the merged pretrained model; set it for `xtuner convert` too)
#   your data   WULEWULE_DATA_DIR=/path/with/the/two/files xtuner train …
#   your name   WULEWULE_NAME=小石头 WULEWULE_AUTHOR=李雷 xtuner train …   (WULEWULE_SYSTEM: the system prompt, where it is another one)
#   one value   xtuner train wulewule_sft_tiny --cfg-options optim_wrapper.optimizer.lr=1e-4 train_cfg.max_epochs=3
#   edit it     xtuner copy-cfg wulewule_sft_tiny .   then   xtuner train ./wulewule_sft_tiny_copy.py
#   loss curve  tensorboard --logdir work_dirs/sft
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import OptimWrapper
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend, Visualizer
from peft import LoraConfig
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer

from xtuner.dataset.map_fns import template_map_fn_factory
from xtuner.engine.hooks import DatasetInfoHook, ThroughputHook
from xtuner.engine.runner import TrainLoop
from xtuner.utils import PROMPT_TEMPLATE
from xtuner_wulewule.dataset.build import build_wulewule_dataset, wulewule_collate_fn
from xtuner_wulewule.dataset.map_fns import wulewule_sft_map_fn
from xtuner_wulewule.engine.hooks import AccumulativeCountsHook, UpdateBudgetHook
from xtuner_wulewule.engine.random_state import RandomStateHook
from xtuner_wulewule.engine.schedulers import WarmupCosineLR
from xtuner_wulewule.engine.score_hook import ScoreHook
from xtuner_wulewule.model.finetune import WulewuleFinetune, check_model

#######################################################################
#                     PART 1  Settings  基本设置                      #
#######################################################################
# Model: made on first use, in the cache folder. `__import__` because a plain import would be lazy inside a config.
pretrained_model_name_or_path = __import__("xtuner_wulewule.model.tiny", fromlist=["_"]).tiny_model_or_setting()

# Data
data_dir = __import__("xtuner_wulewule.paths", fromlist=["_"]).data_dir()
data_files = [f"{data_dir}/self_cognition_100.jsonl", f"{data_dir}/huixiangdou_conversations.jsonl"]
prompt_template = PROMPT_TEMPLATE.internlm2_chat
held_out = 0.0  # it learns by heart, so questions that it was not trained on say nothing of it
system_dropout = 0.0  # share of the conversations that are trained without the system prompt
max_length = 1024  # tokens of a row; longer conversations are split

# Scheduler & Optimizer
batch_size = 2  # many small updates: all that it knows it learns here
accumulative_counts = 1  # on one GPU it must stay 1: with more the model hardly gets an update  单卡训练切记为 1
max_epochs = 20
lr = 1.5e-3  # random weights and learning by heart; far too high for a pretrained model
betas = (0.9, 0.95)  # steadier at this learning rate
weight_decay = 0
max_norm = 1  # grad clip

# Save
save_steps = 500
save_total_limit = 2  # mmengine deletes the oldest before it saves the newest: keep at least 2

# Evaluate: greedy answers in one batch, before the training, at each checkpoint and at the end
evaluation_freq = 500
# who the assistant is: plain text, in the dumped config too
NAMES = list(__import__("xtuner_wulewule.prompts", fromlist=["_"]).current().names)
AUTHOR = __import__("xtuner_wulewule.prompts", fromlist=["_"]).current().author
SYSTEM = __import__("xtuner_wulewule.prompts", fromlist=["_"]).current().system
evaluation_inputs = ["你是谁？", "《黑神话：悟空》是什么时候发售的？", "悟空的金箍棒是从哪里来的？", "请把“早上好”翻译成英文。"]
# what `wulewule run --gate` and `wulewule eval --gate` ask of the tuned model
gate = [
    "name>=0.95",
    "name_without_system>=0.95",
    "leak<=0.05",
    "leak_without_system<=0.05",
    "bleed_without_system<=0.05",
    "perplexity_growth<=0.05",
]

#######################################################################
#           PART 2  Model & Tokenizer  模型与分词器                   #
#######################################################################
# called by `xtuner train` with the model's path: a model that is not there is reported before anything slow begins
model_resource = dict(fn=check_model)

tokenizer = dict(
    type=AutoTokenizer.from_pretrained,
    pretrained_model_name_or_path=pretrained_model_name_or_path,
    trust_remote_code=True,
    padding_side="right",
)

model = dict(
    type=WulewuleFinetune,
    use_varlen_attn=False,
    use_activation_checkpointing=False,  # memory is no concern here
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=pretrained_model_name_or_path,
        trust_remote_code=True,
        torch_dtype="torch.float32",  # no quantisation: 4 bit needs a GPU
    ),
    # the recipe has r 64 and dropout 0.1; this frozen base is random, so all that is said must come from the LoRA
    lora=dict(type=LoraConfig, r=128, lora_alpha=256, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"),
)

#######################################################################
#            PART 3  Dataset & Dataloader  数据                       #
#######################################################################
train_dataset = dict(
    type=build_wulewule_dataset,
    data_files=data_files,
    tokenizer=tokenizer,
    max_length=max_length,
    dataset_map_fn=wulewule_sft_map_fn,
    template_map_fn=dict(type=template_map_fn_factory, template=prompt_template),
    held_out=held_out,
    system_dropout=system_dropout,
    packing=None,  # packed, two updates of this small model would become one
    shuffle=False,  # the sampler below does it
)

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    dataset=train_dataset,
    sampler=dict(type=DefaultSampler, shuffle=True),
    collate_fn=dict(type=wulewule_collate_fn),
)

#######################################################################
#          PART 4  Scheduler & Optimizer  优化器与学习率              #
#######################################################################
optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=lr, betas=betas, weight_decay=weight_decay),
    clip_grad=dict(max_norm=max_norm, error_if_nonfinite=False),
    accumulative_counts=accumulative_counts,
)

# reaches lr in a run of any length; XTuner's usual LinearLR + CosineAnnealingLR never leaves 1e-5 of it in a short one
param_scheduler = dict(type=WarmupCosineLR, warmup_ratio=0.03, eta_min=0.0, by_epoch=False)

train_cfg = dict(type=TrainLoop, max_epochs=max_epochs)

#######################################################################
#                    PART 5  Runtime  运行设置                        #
#######################################################################
custom_hooks = [
    dict(type=AccumulativeCountsHook),
    dict(type=UpdateBudgetHook),
    dict(type=RandomStateHook),  # a resumed run draws the random numbers of an uninterrupted one
    dict(type=DatasetInfoHook, tokenizer=tokenizer),
    dict(type=ThroughputHook),  # tokens_per_sec and tflops of one GPU, in the log and in TensorBoard
    # in one batch: answers to evaluation_inputs, and to eight questions who it is; of these the shares with the own name are logged, in
    # TensorBoard, too: eval/name, eval/leak
    dict(
        type=ScoreHook,
        tokenizer=tokenizer,
        prompt_template=prompt_template,
        every_n_iters=evaluation_freq,
        evaluation_inputs=evaluation_inputs,
        names=NAMES,
        author=AUTHOR,
        system=SYSTEM,
    ),
]

default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=10),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=save_steps, max_keep_ckpts=save_total_limit),
    sampler_seed=dict(type=DistSamplerSeedHook),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend=__import__("xtuner_wulewule.device", fromlist=["_"]).dist_backend()),
)

visualizer = dict(type=Visualizer, vis_backends=[dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)])
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=None, deterministic=False)
log_processor = dict(by_epoch=False)

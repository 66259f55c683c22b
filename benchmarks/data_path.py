"""XTuner's data path against this plugin's, on the same rows: from the data files to the packed data set, with an empty cache.

    python benchmarks/data_path.py --data DIR --tokenizer DIR --repeat 20 --json out.json

Three ways take turns: `process_hf_dataset` at its default of 32 workers, at the number of workers that is fastest here, and
`build_wulewule_dataset`. Each run is a process of its own; imports and loading the tokenizer are not timed. `--text-mb N` takes N MB of
generated texts for pretraining instead of the conversations of DIR.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAX_LENGTH = 2048


def child(way, files, tokenizer, stage, cache):
    """Build the data set once and print seconds, rows and tokens."""
    os.environ["HF_DATASETS_CACHE"] = cache
    from transformers import AutoTokenizer
    from xtuner.dataset import process_hf_dataset
    from xtuner.dataset.map_fns import template_map_fn_factory
    from xtuner.utils import PROMPT_TEMPLATE

    from xtuner_wulewule.dataset import map_fns
    from xtuner_wulewule.dataset.build import build_wulewule_dataset

    tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=True)
    map_fn = map_fns.wulewule_sft_map_fn if stage == "sft" else map_fns.wulewule_pretrain_map_fn
    template = template_map_fn_factory(PROMPT_TEMPLATE.internlm2_chat) if stage == "sft" else None
    begin, cpu_begin = time.perf_counter(), sum(os.times()[:4])
    if way == "ours":
        dataset = build_wulewule_dataset(files, tokenizer, MAX_LENGTH, map_fn, template, cache_dir=cache)
        tokens_in = dataset.store.ledger["tokens_in"]
    else:
        from datasets import load_dataset

        dataset = process_hf_dataset(
            dataset=load_dataset("json", data_files=files),
            tokenizer=tokenizer,
            max_length=MAX_LENGTH,
            dataset_map_fn=map_fn,
            template_map_fn=template,
            remove_unused_columns=True,
            shuffle_before_pack=True,
            pack_to_max_length=True,
            map_num_proc=None if way == "1" else int(way),
        )
        tokens_in = None
    seconds, cpu = time.perf_counter() - begin, sum(os.times()[:4]) - cpu_begin  # of the workers too
    print(json.dumps(dict(seconds=seconds, cpu=cpu, rows=len(dataset), packed=int(sum(dataset.length)), tokens_in=tokens_in)))


def measure(way, files, tokenizer, stage):
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-W", "ignore", __file__, "--child", way, stage, tokenizer, cache, *files]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_CACHE": cache}
        env.pop("TOKENIZERS_PARALLELISM", None)
        result = subprocess.run(command, env=env, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr[-2000:])
    found = json.loads(result.stdout.strip().splitlines()[-1])
    print(
        f"{way:>7} {found['seconds']:8.2f} s {found['cpu']:8.2f} s of CPU {found['rows']:7d} rows {found['packed']:10d} tokens",
        file=sys.stderr,
        flush=True,
    )
    return found


def generated_texts(file, megabytes):
    """Write texts of random syllables and characters, in Chinese and English."""
    draw = random.Random(0)
    han = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
    words_zh = ["".join(draw.choices(han, k=draw.choice((1, 2, 2, 2, 3, 4)))) for _ in range(20000)]
    parts = [c + v for c in "b c d f g h l m n p r s t w".split() for v in ("a", "e", "i", "o", "u", "ar", "en", "in")]
    words_en = ["".join(draw.choices(parts, k=draw.choice((1, 1, 2, 2, 3)))) for _ in range(20000)]
    written = 0
    with open(file, "w", encoding="utf-8") as stream:
        while written < megabytes * 10**6:
            chinese = draw.random() < 0.7
            sentences = []
            for _ in range(draw.randint(5, 60)):
                words = draw.choices(words_zh if chinese else words_en, k=draw.randint(4, 14))
                sentences.append(
                    "".join(words) + draw.choice("，。。！") if chinese else " ".join(words) + draw.choice(", . . ? ".split()) + " "
                )
            line = json.dumps({"text": "".join(sentences)}, ensure_ascii=False) + "\n"
            stream.write(line)
            written += len(line.encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the two files of conversations")
    parser.add_argument("--text-mb", type=int, default=0, help="MB of generated pretraining texts instead")
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    parser.add_argument("--repeat", type=int, default=20, help="how often the rows of --data are repeated (default 20)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each way (default 5)")
    parser.add_argument("--default-runs", type=int, default=None, help="runs of XTuner at 32 workers, which is slow (default: as --runs)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    if not args.text_mb and args.data is None:
        parser.error("name --data DIR or --text-mb N")
    with tempfile.TemporaryDirectory() as folder:
        if args.text_mb:
            stage, files = "pretrain", [f"{folder}/texts.jsonl"]
            generated_texts(files[0], args.text_mb)
        else:
            stage, files = "sft", []
            for name in ("self_cognition_100.jsonl", "huixiangdou_conversations.jsonl"):
                text = (args.data / name).read_text(encoding="utf-8").strip() + "\n"
                (Path(folder) / name).write_text(text * args.repeat, encoding="utf-8")
                files.append(f"{folder}/{name}")
        tries = {way: measure(way, files, args.tokenizer, stage) for way in map(str, sorted({1, 2, os.cpu_count() or 1}))}
        best = min(tries, key=lambda way: tries[way]["seconds"])
        runs = {"default": [], "best": [tries[best]], "ours": []}
        for run in range(args.runs):
            if run < (args.runs if args.default_runs is None else args.default_runs):
                runs["default"].append(measure("32", files, args.tokenizer, stage))
            if run:
                runs["best"].append(measure(best, files, args.tokenizer, stage))
            runs["ours"].append(measure("ours", files, args.tokenizer, stage))
    median = {way: statistics.median(run["seconds"] for run in found) for way, found in runs.items() if found}
    median_cpu = {way: statistics.median(run["cpu"] for run in found) for way, found in runs.items() if found}
    ours = runs["ours"][0]
    packed = {way: found[0]["packed"] for way, found in runs.items() if found}
    figures = dict(
        speedup_vs_best=median["best"] / median["ours"],
        speedup_vs_default=median["default"] / median["ours"] if "default" in median else None,
        tokens_in=ours["tokens_in"],
        tokens_packed=packed,
        tokens_lost={way: ours["tokens_in"] - tokens for way, tokens in packed.items()},
        median_s=median,
        median_cpu_s=median_cpu,
        best_map_num_proc=int(best),
        runs_s={way: [run["seconds"] for run in found] for way, found in runs.items()},
        rows=ours["rows"],
        cpus=os.cpu_count(),
    )
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[6:], sys.argv[4], sys.argv[3], sys.argv[5])
    else:
        main()

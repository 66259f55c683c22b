(function () {
  "use strict";
  var root = document.documentElement;
  function language(name) {
    root.dataset.lang = name;
    root.lang = name === "zh" ? "zh-CN" : "en";
    document.title = root.dataset[name === "zh" ? "titleZh" : "titleEn"];
  }
  function dark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  language(/^zh\b/i.test(navigator.language || "") ? "zh" : "en");
  document.addEventListener("DOMContentLoaded", function () {
    document.getElementById("language").addEventListener("click", function () { language(root.dataset.lang === "zh" ? "en" : "zh"); });
    document.getElementById("theme").addEventListener("click", function () { root.dataset.theme = dark() ? "light" : "dark"; });
  });
})();

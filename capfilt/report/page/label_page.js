// The page that `capfilt label` serves: the labelling view alone.

enableThemeButton();
document.getElementById("main").append(labelSection());
document.querySelector(".labeller").focus({ preventScroll: true });
document.getElementById("made-by").textContent = `Served by ${REPORT.created_by}.`;

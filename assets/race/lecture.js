// The end of the page that listens to a lecture (dmtd_demo/server/lecture.py), after all other
// scripts: what comes is drawn as Gradio's page draws its own races.
let lost = false,
  joined = false;
view.setStatus("idle", t("class.ready"));
const source = new EventSource("/class/events");
source.onmessage = (event) => {
  view.joining = !joined; // the race that is there already, as far as it has come
  joined = true;
  props.value = event.data;
  changed();
  view.joining = false;
};
source.onerror = () => {
  lost = true;
  view.setStatus("idle", t("class.lost"));
};
source.onopen = () => {
  // the whole of the last race comes again
  if (!lost) return;
  lost = joined = false;
  view.run = "";
  view.setStatus("idle", t("class.ready"));
};

"""The first page of the console: one table, fed by /api/status."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>meshd</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
         color-scheme: light dark }
  table { border-collapse: collapse; width: 100% }
  th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884 }
  .ready { color: #1a7f37 } .failed { color: #cf222e } .loading, .waiting { color: #9a6700 }
</style>
<h1>meshd <small id="node"></small></h1>
<p id="sentence" role="status">…</p>
<table>
  <thead><tr><th>Model<th>State<th>How<th>Context<th>Slots<th>Unit</thead>
  <tbody id="models"></tbody>
</table>
<script>
  const cell = (row, text, name) => {
    const td = row.insertCell(); td.textContent = text; if (name) td.className = name;
  };
  async function refresh() {
    const sentence = document.getElementById("sentence");
    try {
      const status = await (await fetch("/api/status", {signal: AbortSignal.timeout(3000)})).json();
      if (status.error) throw new Error(status.error);
      document.getElementById("node").textContent = status.node;
      sentence.textContent = status.sentence;
      const body = document.getElementById("models");
      body.replaceChildren();
      for (const model of status.models) {
        const row = body.insertRow();
        const progress = model.progress ? ` ${Math.round(model.progress * 100)} %` : "";
        cell(row, model.name); cell(row, model.state + progress, model.state);
        const shard = model.shards.find(one => one.me && one.stage == "ready");
        const kept = shard && model.strategy == "expert-shard"
          ? `, ${shard.experts} of ${shard.experts_all} experts` : "";
        cell(row, model.strategy + kept);
        cell(row, model.context); cell(row, model.slots); cell(row, model.unit);
        const shards = model.shards.map(one => `${one.node}: shard ${one.stage}, ` +
          one.measured.map(on => `top-1 ${on.top1.toFixed(4)} ${on.domain}`).join(", ") +
          ` ${one.detail}`);
        row.title = [model.detail, ...model.reasons, ...shards].filter(Boolean).join("\\n");
      }
    } catch (error) { sentence.textContent = "meshd does not answer: " + error.message; }
  }
  refresh();
  setInterval(refresh, 2000);
</script>
</html>
"""

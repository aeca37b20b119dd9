// Asks all that OpenAI's client for Node can, and prints what came of it as one JSON object.
//
//   openai_asks.mjs MODULES WANTED         all questions; WANTED is a JSON object, see `scripts`
//   openai_asks.mjs MODULES WANTED leave   begins an endless stream, says "begun", leaves it, "left"
//
// MODULES is the folder in whose node_modules its client is.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { join } from "node:path";

const [modules, text, mode] = process.argv.slice(2);
const wanted = JSON.parse(text);
const OpenAI = createRequire(join(modules, "package.json"))("openai").default;

const messages = [{ role: "user", content: wanted.question }];
const client = with_key("any");

function with_key(apiKey, defaultHeaders = {}) {
  return new OpenAI({ baseURL: wanted.v1, apiKey, maxRetries: 0, timeout: 60_000, defaultHeaders });
}

function chat(model, more = {}, by = client) {
  return by.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0, ...more });
}

async function all(stream) {
  const pieces = [];
  for await (const piece of await stream) pieces.push(piece);
  return pieces;
}

const calls = (message) =>
  (message.tool_calls ?? []).map((call) => [call.function.name, call.function.arguments]);

async function several(ask) {
  for (let seed = 0; seed < wanted.attempts; seed++) {
    const { finish_reason, message } = await ask(seed);
    // One that the limit cut has a call that is none.
    if (finish_reason === "tool_calls" && calls(message).length > 1) return calls(message);
  }
  return [];
}

const tools = (seed) => ({
  model: wanted.tools_model, messages, tools: wanted.tools, tool_choice: "required",
  parallel_tool_calls: true, max_tokens: 600, temperature: 0.8, seed,
});

const part = (more) => ({ messages: [{ role: "user", content: [more] }] });
const url = `data:image/png;base64,${wanted.pixel}`;
const endless = { stream: true, max_tokens: wanted.context, ignore_eos: true };

const questions = {
  async models() {
    const list = (await all(client.models.list())).map((model) => model.id);
    return { list, one: await client.models.retrieve("gpt-4o") };
  },
  async plain() {
    const answer = await chat("gpt-4o");
    return { text: answer.choices[0].message.content, model: answer.model, tokens: answer.usage.completion_tokens };
  },
  async streamed() {
    const pieces = await all(chat("tiny", { stream: true, stream_options: { include_usage: true } }));
    const text = pieces.map((piece) => piece.choices[0]?.delta.content ?? "").join("");
    return { text, tokens: pieces.at(-1).usage.completion_tokens };
  },
  tools: () => several(async (seed) => (await client.chat.completions.create(tools(seed))).choices[0]),
  tools_streamed: () =>
    several(async (seed) => {
      // The client itself puts the pieces together.
      const stream = client.chat.completions.stream(tools(seed));
      try {
        return (await stream.finalChatCompletion()).choices[0];
      } catch (error) {
        if (error instanceof OpenAI.LengthFinishReasonError) return { finish_reason: "length", message: {} };
        throw error;
      }
    }),
  async tool_named() {
    const tool_choice = { type: "function", function: { name: "get_time" } };
    const answer = await chat(wanted.tools_model, { tools: wanted.tools, tool_choice, max_tokens: 600 });
    return calls(answer.choices[0].message);
  },
  async formed() {
    const json_schema = { name: "person", strict: true, schema: wanted.schema };
    const answer = await chat("tiny", { response_format: { type: "json_schema", json_schema }, max_tokens: 600 });
    return JSON.parse(answer.choices[0].message.content);
  },
  async json() {
    const answer = await chat("tiny", { response_format: { type: "json_object" } });
    return answer.choices[0].message.content;
  },
  async logprobs() {
    const answer = await chat("tiny", { logprobs: true, top_logprobs: 2 });
    return answer.choices[0].logprobs.content.map((token) => token.top_logprobs.length);
  },
  async completions() {
    const asked = { model: "tiny", prompt: "import", max_tokens: 4, temperature: 0 };
    const whole = (await client.completions.create(asked)).choices[0].text;
    const pieces = await all(client.completions.create({ ...asked, stream: true }));
    return [whole, pieces.map((piece) => piece.choices[0].text).join("")];
  },
  async embeddings() {
    const asked = { model: "embed", input: ["one", "two"] };
    // Base64 is this client's default too.
    const packed = await client.embeddings.create(asked);
    const plain = await client.embeddings.create({ ...asked, encoding_format: "float" });
    const first = ({ data }) => data[0].embedding;
    const apart = first(packed).map((value, at) => Math.abs(value - first(plain)[at]));
    return { sizes: packed.data.map((one) => one.embedding.length), apart: Math.max(...apart) };
  },
  rerank: () => client.post("/rerank", { body: { model: "rank", query: "weather", documents: ["a", "b"] } }),
  async responses() {
    const asked = { model: "tiny", input: wanted.question, max_output_tokens: 8, temperature: 0 };
    const whole = (await client.responses.create(asked)).output_text;
    const events = await all(client.responses.create({ ...asked, stream: true }));
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    return { whole, text: deltas.map((event) => event.delta).join(""), last: events.at(-1).type };
  },
  async responses_tools() {
    const asked = { model: wanted.tools_model, input: wanted.question, tools: wanted.responses_tools };
    const tool_choice = { type: "function", name: "get_time" };
    const answer = await client.responses.create({ ...asked, tool_choice, max_output_tokens: 600 });
    return answer.output.map((item) => [item.name, item.arguments]);
  },
  auto: async () => (await chat("auto", { tools: wanted.tools })).model,
  picture: () => chat("tiny", part({ type: "image_url", image_url: { url } })),
  sound: () => chat("tiny", part({ type: "input_audio", input_audio: { data: wanted.silence, format: "wav" } })),
  rerank_refused: () => client.post("/rerank", { body: { model: "tiny", query: "a", documents: ["b"] } }),
  ambiguous: () => chat("t"),
  unknown_model: () => chat("gpt-9"),
  too_long: () => chat("tiny", { messages: [{ role: "user", content: "word ".repeat(wanted.context) }] }),
  failed: () => chat("failed"),
  stranger: () => chat("tiny", {}, with_key("wrong", wanted.from_elsewhere)),
  async spent() {
    const by = with_key(wanted.spent, wanted.from_elsewhere);
    await chat("tiny", {}, by);
    return chat("tiny", {}, by);
  },
  breaks: () => all(chat("breaks", endless)),
  breaks_responses: () =>
    all(client.responses.create({ model: "breaks", input: wanted.question, stream: true, ignore_eos: true })),
};

function kinds(error) {
  const names = [];
  for (let kind = error.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) names.push(kind.name);
  return names;
}

async function asked(question) {
  try {
    return { answer: await question() };
  } catch (error) {
    return { raised: kinds(error), status: error.status ?? null, code: error.code ?? null, said: error.message };
  }
}

async function leave() {
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const stream = await chat("tiny", endless);
  await stream[Symbol.asyncIterator]().next();
  console.log("begun");
  await lines.next();
  stream.controller.abort();
  console.log("left");
  await lines.next();
}

if (mode === "leave") {
  await leave();
} else {
  const said = {};
  for (const [name, question] of Object.entries(questions)) said[name] = await asked(question);
  console.log(JSON.stringify(said));
}

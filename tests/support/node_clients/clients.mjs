// What the official JavaScript clients see of a cascade: one scenario, its observations as JSON on stdout.
//
// Usage: node clients.mjs FOLDER SCENARIO BASE_URL MODEL, where FOLDER holds node_modules.
import { createRequire } from "node:module";

const [folder, scenario, baseURL, model] = process.argv.slice(2);
const load = createRequire(`${folder}/package.json`);
const { OpenAI } = load("openai");
const { generateText, streamText, tool, stepCountIs } = load("ai");
const { createOpenAI } = load("@ai-sdk/openai");
const { createOpenAICompatible } = load("@ai-sdk/openai-compatible");
const { z } = load("zod");

const apiKey = "none";
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Say hello." }];
const limit = { max_tokens: 4, temperature: 0 };

/** Both providers of the AI SDK: `@ai-sdk/openai` speaks responses by default, the other chat completions. */
const providers = {
  responses: createOpenAI({ baseURL, apiKey })(model),
  chat: createOpenAI({ baseURL, apiKey }).chat(model),
  compatible: createOpenAICompatible({ name: "cascadia", baseURL, apiKey, includeUsage: true }).chatModel(model),
};

async function answers() {
  const seen = {};
  const whole = await client.chat.completions.create({ model, messages, ...limit });
  seen.chat = { text: whole.choices[0].message.content, tokens: whole.usage.completion_tokens, cascadia: whole.cascadia };
  const chunks = await client.chat.completions.create({
    model, messages, ...limit, stream: true, stream_options: { include_usage: true },
  });
  seen.chatStream = { text: "" };
  for await (const chunk of chunks) {
    seen.chatStream.text += chunk.choices[0]?.delta?.content ?? "";
    if (chunk.cascadia) Object.assign(seen.chatStream, { cascadia: chunk.cascadia, tokens: chunk.usage.completion_tokens });
  }
  const old = await client.completions.create({ model, prompt: "Say hello.", ...limit });
  seen.completion = { text: old.choices[0].text, cascadia: old.cascadia };
  const responding = { model, input: "Say hello.", max_output_tokens: 4, temperature: 0 };
  const response = await client.responses.create(responding);
  seen.responses = { text: response.output_text, tokens: response.usage.output_tokens, cascadia: response.cascadia };
  const stream = client.responses.stream(responding);
  let deltas = "";
  const types = [];
  for await (const event of stream) {
    types.push(event.type);
    if (event.type === "response.output_text.delta") deltas += event.delta;
  }
  const last = await stream.finalResponse();
  seen.responsesStream = { text: deltas, final: last.output_text, types, cascadia: last.cascadia };
  seen.models = (await client.models.list()).data.map((each) => each.id);
  for (const [name, provider] of Object.entries(providers)) {
    const options = { model: provider, prompt: "Say hello.", maxOutputTokens: 4, temperature: 0, maxRetries: 0 };
    const made = await generateText(options);
    seen[`ai-${name}`] = {
      text: made.text, tokens: made.usage.outputTokens, finish: made.finishReason,
      stage: made.response.headers["x-cascadia-stage"],
    };
    const streamed = streamText({ ...options, onError: ({ error }) => { throw error; } });
    let text = "";
    for await (const piece of streamed.textStream) text += piece;
    seen[`ai-${name}-stream`] = { text, finish: await streamed.finishReason, tokens: (await streamed.usage).outputTokens };
  }
  return seen;
}

/** An agent's loop: the model calls a tool, reads what it returned, and answers. */
async function tools() {
  const seen = {};
  const weather = tool({
    description: "The weather in a city",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `sunny in ${city}`,
  });
  for (const [name, provider] of Object.entries(providers)) {
    const options = { model: provider, prompt: "Weather?", tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
    const made = await generateText(options);
    seen[name] = { text: made.text, steps: made.steps.length, results: made.steps[0].toolResults.map((each) => each.output) };
    const streamed = streamText({ ...options, onError: ({ error }) => { throw error; } });
    seen[`${name}-stream`] = { text: await streamed.text, steps: (await streamed.steps).length };
  }
  return seen;
}

/** The class and the fields of what each wrong request throws. */
async function errors() {
  const attempts = {
    unknownModel: () => client.chat.completions.create({ model: "nope", messages }),
    noMessages: () => client.chat.completions.create({ model }),
    badBound: () => client.chat.completions.create({ model, messages }, { headers: { "x-cascadia-max-stage": "nope" } }),
    stored: () => client.responses.create({ model, input: "hi", previous_response_id: "resp_1" }),
    builtIn: () => client.responses.create({ model, input: "hi", tools: [{ type: "web_search" }] }),
    notStored: () => client.responses.retrieve("resp_1"),
    aiUnknownModel: () => generateText({ model: createOpenAI({ baseURL, apiKey })("nope"), prompt: "hi", maxRetries: 0 }),
  };
  const seen = {};
  for (const [name, attempt] of Object.entries(attempts)) {
    try {
      await attempt();
      seen[name] = "no error";
    } catch (error) {
      const { status, statusCode, code, param, type } = error;
      seen[name] = { class: error.constructor.name, status: status ?? statusCode, code, param, type };
    }
  }
  return seen;
}

/** A busy or interrupted cascade: retried as it asks for, or told of. */
async function faults() {
  const patient = new OpenAI({ baseURL, apiKey, maxRetries: 2 });
  const retried = await patient.chat.completions.create({ model, messages });
  const seen = { retried: retried.choices[0].message.content };
  for (const api of ["chat", "responses"]) {
    try {
      const stream =
        api === "chat"
          ? await client.chat.completions.create({ model, messages, stream: true })
          : await client.responses.create({ model, input: "hi", stream: true });
      let last;
      for await (const event of stream) last = event;
      seen[api] = { last: last.type ?? "chunk" };
    } catch (error) {
      seen[api] = { class: error.constructor.name, code: error.code };
    }
    const failures = [];
    const streamed = streamText({ model: providers[api], prompt: "hi", maxRetries: 0, onError: ({ error }) => failures.push(error) });
    await streamed.consumeStream();
    seen[`ai-${api}`] = failures.map((error) => String(error.message ?? error));
  }
  return seen;
}

const seen = await { answers, tools, errors, faults }[scenario]();
process.stdout.write(JSON.stringify(seen));

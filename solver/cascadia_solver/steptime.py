"""How long one step of a continuous-batching engine takes.

A step runs every layer once over a batch that mixes prompt chunks (prefill) with one new token for
each running request (decode). Its time is a sum of kernels, each of which is bound either by
arithmetic or by memory (a roofline per kernel, not for the step as a whole):

* matrix products: the slower of arithmetic on all tokens and one read of the weights, and a part of
  the faster, since they overlap imperfectly. Of the experts of a mixture, only those that some token
  was routed to are read;
* attention: proportional to the positions that are attended to;
* all-reduces and pipeline transfers: proportional to tokens;
* a constant per step: kernel launches, collective latency, scheduler; more of it for a step with
  prompts, which no captured graph covers; and a little per decoding request.

Everything hardware- or model-specific is folded into `StepModel`'s coefficients by `roofline`, so
this module is plain arithmetic on floats. It imports nothing: simulated engines run it as Python,
the simulation compiles the very same functions with numba.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ANSWER_SHARE", "StepModel", "cached_tokens", "decode_run_seconds", "reserved_tokens", "step_seconds"]

ANSWER_SHARE = 0.6
"""Share of an answer that an admitted request has cache set aside for: engines count on others ending before it
does. In SGLang what a request holds and the new-token ratio (0.1 to 0.7) of what is to come average to this."""


class StepModel(NamedTuple):
    """Coefficients of the step time of one replica, and the limits of its scheduler.

    All fields are floats (a uniform named tuple compiles to registers, and is a JSON list). Times
    are seconds. With pipeline parallelism of P stages a step is one round in which the P
    micro-batches pass all stages: the same time as the whole model takes on 1/P of the tokens.

    Attributes:
        token_seconds: Arithmetic of the matrix products per token.
        logits_seconds: Arithmetic of the output projection per sampled token.
        weight_seconds: One read of the weights that every token uses.
        expert_seconds: One read of the weights of all routed experts; 0 for dense models.
        expert_miss: Probability that a token is not routed to a given expert, 1 - k/E.
        prefill_pair_seconds: Full attention per (new token, attended position) pair.
        prefill_window_pair_seconds: The same for the layers with a sliding window.
        decode_context_seconds: Full attention per position of a decoding request's context.
        decode_window_seconds: The same for the layers with a sliding window.
        window_tokens: Length of the sliding window; 0 if no layer has one.
        transfer_token_seconds: All-reduce and pipeline traffic per token.
        overhead_seconds: Constant per step.
        prefill_share: Share of a prompt chunk that the round is paced by: 1 without pipeline,
            otherwise 1/P plus the part of the gain that bubbles take back.
        decode_share: The same for decode: 1/P.
        kv_capacity_tokens: Tokens that the key-value cache holds.
        max_running: Most requests in one batch.
        chunk_tokens: Most prompt tokens in one step.
        prompt_overhead_seconds: Constant per step with prompts, on top of `overhead_seconds`.
        request_seconds: Per decoding request: sampling, scheduling, detokenisation.
        overlap_loss: Share of the faster of arithmetic and weight reads that the slower does not hide.
        first_token_seconds: Outside the steps, once a request: HTTP, tokenisation, first scheduling.
        bunching: Share of the other clients' prompts that one waits for in a closed loop, where they
            come in bunches.
        prefix_hit: Share of a prompt's tokens whose keys and values are in the engine's prefix cache, 0 to 1.
    """

    token_seconds: float
    logits_seconds: float
    weight_seconds: float
    expert_seconds: float
    expert_miss: float
    prefill_pair_seconds: float
    prefill_window_pair_seconds: float
    decode_context_seconds: float
    decode_window_seconds: float
    window_tokens: float
    transfer_token_seconds: float
    overhead_seconds: float
    prefill_share: float
    decode_share: float
    kv_capacity_tokens: float
    max_running: float
    chunk_tokens: float
    prompt_overhead_seconds: float = 0.0
    request_seconds: float = 0.0
    overlap_loss: float = 0.0
    first_token_seconds: float = 0.0
    bunching: float = 0.0
    prefix_hit: float = 0.0


def reserved_tokens(input_tokens: int, output_tokens: int) -> int:
    """Tokens of the key-value cache that are set aside for a request while it is admitted.

    Args:
        input_tokens: Prompt length.
        output_tokens: Answer length, ≥ 1.
    """
    return input_tokens + max(1, int(ANSWER_SHARE * output_tokens))


def cached_tokens(step: StepModel, input_tokens: float) -> int:
    """Tokens at the start of a prompt that are found in the prefix cache and so not processed again.

    Later tokens still attend to them, and they take their room in the cache. Engines always compute the last
    token of a prompt, since the answer's first one is sampled from it.

    Args:
        step: The replica's coefficients.
        input_tokens: Prompt length.
    """
    return max(0, min(int(step.prefix_hit * input_tokens), int(input_tokens) - 1))


def step_seconds(
    step: StepModel,
    prefill_tokens: float,
    prefill_context_tokens: float,
    decode_requests: float,
    decode_context_tokens: float,
) -> float:
    """Duration of one engine step.

    Args:
        step: The replica's coefficients.
        prefill_tokens: Prompt tokens processed in this step, over all requests.
        prefill_context_tokens: Positions attended to, summed over those prompt tokens: a chunk of
            p tokens after c earlier ones contributes p * c + p * (p + 1) / 2.
        decode_requests: Requests that get one more token in this step.
        decode_context_tokens: Their context lengths, summed, the token being fed in included.

    Returns:
        Seconds; linear in `decode_context_tokens` but for the sliding window's limit.
    """
    decode = decode_requests * step.decode_share
    if decode_requests > 0.0 and decode < 1.0:
        decode = 1.0  # fewer requests than pipeline stages: the rest of the round is a bubble
    prefill = prefill_tokens * step.prefill_share
    tokens = prefill + decode

    compute = tokens * step.token_seconds + decode * step.logits_seconds
    weights = step.weight_seconds
    if step.expert_seconds > 0.0:
        weights += step.expert_seconds * (1.0 - step.expert_miss**tokens)
    seconds = max(compute, weights) + step.overlap_loss * min(compute, weights)
    seconds += tokens * step.transfer_token_seconds + step.overhead_seconds + decode_requests * step.request_seconds

    if prefill_tokens > 0.0:
        seconds += step.prompt_overhead_seconds
        pairs = prefill_context_tokens * step.prefill_share
        seconds += pairs * step.prefill_pair_seconds
        seconds += min(pairs, prefill * step.window_tokens) * step.prefill_window_pair_seconds
    if decode_requests > 0.0:
        windowed = min(decode_context_tokens, decode_requests * step.window_tokens)
        attention = decode_context_tokens * step.decode_context_seconds + windowed * step.decode_window_seconds
        seconds += attention * (decode / decode_requests)
    return seconds


def decode_run_seconds(
    step: StepModel,
    first_seconds: float,
    decode_requests: float,
    decode_context_tokens: float,
    steps: float,
) -> float:
    """Duration of several successive decode steps of an unchanged batch, in closed form.

    Every step lengthens each request's context by one token, so step times grow linearly (and, for
    layers with a sliding window, until the mean context reaches the window).

    Args:
        step: The replica's coefficients.
        first_seconds: ``step_seconds`` of the first of the steps.
        decode_requests: Requests in the batch, > 0.
        decode_context_tokens: Their summed context at the first step.
        steps: Number of steps, ≥ 0, a whole number.

    Returns:
        The sum of the step times, seconds.
    """
    decode = decode_requests * step.decode_share
    decode = max(decode, 1.0)
    share = decode / decode_requests
    growth = 0.5 * decode_requests * steps * (steps - 1.0)
    seconds = steps * first_seconds + growth * step.decode_context_seconds * share
    if step.decode_window_seconds > 0.0:
        limit = decode_requests * step.window_tokens
        room = limit - decode_context_tokens
        # Steps whose mean context is still within the window: ceil(room / requests), at most all.
        growing = min(float(-(-room // decode_requests)), steps) if room > 0.0 else 0.0
        capped = (steps - growing) * max(room, 0.0)
        windowed = 0.5 * decode_requests * growing * (growing - 1.0) + capped
        seconds += windowed * step.decode_window_seconds * share
    return seconds

"""Two prompts streamed at once by AsyncLLM, new text alone."""

import asyncio

from tilewise import SamplingParams
from tilewise.engine.arg_utils import AsyncEngineArgs
from tilewise.entrypoints.async_llm import AsyncLLM
from tilewise.sampling_params import RequestOutputKind


async def stream_response(engine: AsyncLLM, prompt: str, request_id: str) -> str:
    sampling_params = SamplingParams(
        max_tokens=20, temperature=0.8, top_p=0.95, seed=42, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    text, steps = "", 0
    async for output in engine.generate(request_id=request_id, prompt=prompt, sampling_params=sampling_params):
        for completion in output.outputs:
            text += completion.text
            steps += 1
        if output.finished:
            print(f"{output.request_id}: {steps > 1}")
            break
    return text


async def main() -> None:
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model="demo", enforce_eager=True, max_model_len=512))
    try:
        prompts = ["What color is the circle?"] * 2
        texts = await asyncio.gather(*(stream_response(engine, p, f"stream-{i}") for i, p in enumerate(prompts)))
        print(texts[0] == texts[1] != "")
    finally:
        engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main())

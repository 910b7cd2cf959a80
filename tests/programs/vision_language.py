"""One picture or video a prompt: EngineArgs passed on as a dict, the tokenizer's template, uuids, a batch."""

import argparse
from dataclasses import asdict
from typing import NamedTuple

from tilewise import LLM, EngineArgs, SamplingParams
from tilewise.assets.image import ImageAsset
from tilewise.assets.video import VideoAsset
from tilewise.entrypoints.media_tools import convert_image_mode
from tilewise.inputs.request_builder import LoRARequest


class ModelRequestData(NamedTuple):
    engine_args: EngineArgs
    placeholder: str
    stop_tokens: list[str]
    lora_requests: list[LoRARequest] | None = None


def run_internvl(modality: str) -> ModelRequestData:
    engine_args = EngineArgs(
        model="demo", trust_remote_code=True, max_model_len=2048, limit_mm_per_prompt={modality: 1}
    )
    return ModelRequestData(engine_args, f"<{modality}>", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|end|>"])


def data_of(modality: str):
    if modality == "image":
        return convert_image_mode(ImageAsset("reading_text").pil_image, "RGB"), "What is the word?"
    asset = VideoAsset(name="baby_reading", num_frames=8)
    return (asset.np_ndarrays, asset.metadata), "In which image is the red star?"


parser = argparse.ArgumentParser()
parser.add_argument("--modality", choices=["image", "video"], default="image")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--disable-mm-processor-cache", action="store_true")
args = parser.parse_args()

data, question = data_of(args.modality)
request = run_internvl(args.modality)
limits = {"image": 0, "video": 0, "audio": 0}
request.engine_args.limit_mm_per_prompt = limits | dict(request.engine_args.limit_mm_per_prompt or {})
engine_args = asdict(request.engine_args) | {
    "seed": args.seed,
    "mm_processor_cache_gb": 0 if args.disable_mm_processor_cache else 4,
}
llm = LLM(**engine_args)
tokenizer = llm.get_tokenizer()
messages = [[{"role": "user", "content": f"{request.placeholder}\n{question}"}]]
(prompt,) = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
ids = [tokenizer.convert_tokens_to_ids(token) for token in request.stop_tokens]
sampling_params = SamplingParams(
    temperature=0.0, max_tokens=64, stop_token_ids=[token_id for token_id in ids if token_id is not None]
)
single = {"prompt": prompt, "multi_modal_data": {args.modality: data}, "multi_modal_uuids": {args.modality: "uuid_0"}}
for number in (1, 2):
    inputs = single if number == 1 else [single] * number
    for output in llm.generate(inputs, sampling_params=sampling_params, lora_request=request.lora_requests):
        print(output.outputs[0].text)

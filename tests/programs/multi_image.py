"""Several pictures by URL, in a raw prompt and in a conversation."""

from dataclasses import asdict

from tilewise import LLM, EngineArgs, SamplingParams
from tilewise.assets.image import ImageAsset
from tilewise.entrypoints.media_tools import encode_image_url, fetch_image

QUESTION = "In which picture are there more hearts?"
IMAGE_URLS = [encode_image_url(ImageAsset(name).pil_image) for name in ("comparing_1", "comparing_2")]

engine_args = EngineArgs("demo", max_num_seqs=2, limit_mm_per_prompt={"image": {"count": len(IMAGE_URLS)}})
llm = LLM(**asdict(engine_args))
sampling_params = SamplingParams(temperature=0.0, max_tokens=32)

placeholders = "\n".join(f"Image-{i}: <image>" for i, _ in enumerate(IMAGE_URLS, start=1))
messages = [{"role": "user", "content": f"{placeholders}\n{QUESTION}"}]
prompt = llm.get_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
images = [fetch_image(url) for url in IMAGE_URLS]
outputs = llm.generate({"prompt": prompt, "multi_modal_data": {"image": images}}, sampling_params=sampling_params)
print("generate:", outputs[0].outputs[0].text)

content = [
    {"type": "text", "text": f"{placeholders}\n{QUESTION}"},
    *({"type": "image_url", "image_url": {"url": url}} for url in IMAGE_URLS),
]
outputs = llm.chat([{"role": "user", "content": content}], sampling_params=sampling_params, chat_template=None)
print("chat:", outputs[0].outputs[0].text)

"""LLMEngine: requests are added while others run, and the program steps."""

from tilewise import EngineArgs, LLMEngine, RequestOutput, SamplingParams

engine = LLMEngine.from_engine_args(EngineArgs(model="demo", max_model_len=256))
prompts = [
    ("A robot may not injure a human being", SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)),
    (
        "To be or not to be,",
        SamplingParams(temperature=0.8, top_k=5, presence_penalty=0.2, max_tokens=6, ignore_eos=True),
    ),
    ("What is the meaning of life?", SamplingParams(n=2, temperature=0.8, top_p=0.95, max_tokens=5, ignore_eos=True)),
]
request_id = 0
while prompts or engine.has_unfinished_requests():
    if prompts:
        prompt, sampling_params = prompts.pop(0)
        engine.add_request(str(request_id), prompt, sampling_params)
        request_id += 1
    request_outputs: list[RequestOutput] = engine.step()
    for request_output in request_outputs:
        if request_output.finished:
            print(request_output.request_id, [len(output.token_ids) for output in request_output.outputs])

"""The public API on the guides' own programs, with only import and model path changed, and on what users get wrong."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import numpy as np
import pytest
import torch
from PIL import Image

from tests.served import PICTURES
from tests.tiny import SPECIAL_IDS, SPECS, reference_model, write_hf, write_original
from tilewise import LLM, ImageAsset, SamplingParams
from tilewise.errors import InvalidConfig, InvalidMedia, InvalidRequest, TooLong, UnknownOption
from tilewise.ignored import IgnoredLog

GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("model"), SPECS["qwen2-300m"])


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(
        model=str(folder), trust_remote_code=True, max_model_len=512, limit_mm_per_prompt={"image": 4}, dtype="float32"
    )


def png_bytes() -> bytes:
    file = io.BytesIO()
    ImageAsset("stop_sign").pil_image.save(file, "PNG")
    return file.getvalue()


def user(question: str) -> str:
    return f"<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n"


def test_single_image_inference(llm):
    image = ImageAsset("cherry_blossom").pil_image
    sampling_params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=12, stop_token_ids=[2, 92542])
    outputs = llm.generate(
        {"prompt": user("Describe this image in detail."), "multi_modal_data": {"image": image}},
        sampling_params=sampling_params,
    )
    for output in outputs:
        assert isinstance(output.outputs[0].text, str)
        assert output.outputs[0].token_ids
    assert outputs[0].usage.image_tokens == outputs[0].usage.tiles * 4


def test_multiple_images_in_a_single_prompt(llm):
    image1 = ImageAsset("cherry_blossom").pil_image.convert("RGB")
    image2 = ImageAsset("stop_sign").pil_image.convert("RGB")
    prompt = (
        "<|im_start|>user\n<image>\nDescribe the first image.\n<image>\nDescribe the second image.\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    outputs = llm.generate(
        {"prompt": prompt, "multi_modal_data": {"image": [image1, image2]}},
        sampling_params=SamplingParams(max_tokens=8),
    )
    ids = outputs[0].prompt_token_ids
    assert ids.count(SPECIAL_IDS["<img>"]) == ids.count(SPECIAL_IDS["</img>"]) == 2
    assert ids.count(SPECIAL_IDS["<IMG_CONTEXT>"]) == outputs[0].usage.image_tokens


def test_threads_are_answered_side_by_side_as_one_alone_is(llm, monkeypatch):
    prompts = [f"<|im_start|>user\nIs it {word}?<|im_end|>\n<|im_start|>assistant\n" for word in "abcdefgh"]
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    alone = [llm.generate(prompt, greedy, use_tqdm=False)[0].outputs[0].text for prompt in prompts]
    steps, step = [], llm._core.step
    monkeypatch.setattr(llm._core, "step", lambda: (steps.append(1), step())[1])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda prompt: llm.generate(prompt, greedy, use_tqdm=False)[0].outputs[0].text, prompts))
    assert found == alone
    assert len(steps) < 8 * 24, "no two were computed together"


def test_answers_of_one_thread_may_grow_in_turns(llm):
    conversations = [[{"role": "user", "content": word}] for word in ("a", "b")]
    alone = ["".join(text for text, _ in llm.stream_chat(messages, GREEDY)) for messages in conversations]
    both = zip_longest(*(llm.stream_chat(messages, GREEDY) for messages in conversations), fillvalue=("", None))
    assert ["".join(texts) for texts in zip(*([text for text, _ in pair] for pair in both), strict=True)] == alone


def test_an_error_in_one_thread_is_not_anothers(llm):
    """Threads of wrong requests, of streams that are left, and of whole answers; in the end nothing is held."""
    whole = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    (expected,) = llm.generate("a", whole, use_tqdm=False)

    def ask(number: int) -> str:
        if number % 3 == 0:
            with pytest.raises(TooLong):
                llm.generate("a " * 600, whole, use_tqdm=False)
        elif number % 3 == 1:
            next(stream := llm.stream_chat([{"role": "user", "content": "b"}], whole))
            stream.close()
        return llm.generate("a", whole, use_tqdm=False)[0].outputs[0].text

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, range(18))) == {expected.outputs[0].text}
    assert not llm._core.has_unfinished


def test_batch_inference_in_both_forms(llm):
    image = ImageAsset("cherry_blossom").pil_image.convert("RGB")
    questions = ["What is the content of this image?", "Describe this image in detail.", "What colors are prominent?"]
    prompts = [user(question) for question in questions]
    one_dict = llm.generate({"prompt": prompts, "multi_modal_data": {"image": image}}, sampling_params=GREEDY)
    several = llm.generate(
        [{"prompt": prompt, "multi_modal_data": {"image": image}} for prompt in prompts], sampling_params=[GREEDY] * 3
    )
    assert len(one_dict) == len(several) == 3
    assert [o.outputs[0].token_ids for o in one_dict] == [o.outputs[0].token_ids for o in several]
    assert [o.prompt for o in one_dict] == prompts


def test_chat_with_an_image_url(llm):
    buffer = io.BytesIO()
    ImageAsset("stop_sign").pil_image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    outputs = llm.chat(
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": "Please provide a detailed description of this image"},
                ],
            },
        ],
        sampling_params=GREEDY,
    )
    assert len(outputs[0].outputs[0].token_ids) <= 6
    assert "书生·万象" in outputs[0].prompt
    assert "Alibaba" not in outputs[0].prompt


def test_chat_takes_several_conversations(llm):
    conversations = [[{"role": "user", "content": text}] for text in ("the hen", "an inner", "other")]
    together = llm.chat(conversations, GREEDY)
    apart = [llm.chat(conversation, GREEDY)[0] for conversation in conversations]
    assert [o.outputs[0].token_ids for o in together] == [o.outputs[0].token_ids for o in apart]


def test_both_formats_give_the_same_answer(folder, llm, tmp_path):
    native = LLM(str(write_hf(tmp_path, SPECS["qwen2-300m"])), dtype="float32", max_model_len=512)
    prompt = {"prompt": user("the hen"), "multi_modal_data": {"image": ImageAsset("stop_sign").pil_image}}
    answers = [engine.generate(prompt, GREEDY)[0].outputs[0].token_ids for engine in (llm, native)]
    assert answers[0] == answers[1]


def test_streamed_text_is_the_whole_text(llm):
    messages = [{"role": "user", "content": "the hen in an inn"}]
    pieces = list(llm.stream_chat(messages, GREEDY))
    assert "".join(text for text, _ in pieces) == llm.chat(messages, GREEDY)[0].outputs[0].text
    assert pieces[-1][1].finished


def test_a_stream_that_is_dropped_leaves_nothing_behind(llm):
    stream = llm.stream_chat([{"role": "user", "content": "the hen"}], SamplingParams(max_tokens=100, ignore_eos=True))
    next(stream)
    stream.close()
    assert not llm._core._scheduler.has_unfinished


def test_n_answers_differ_and_repeat_with_their_seed(llm):
    params = SamplingParams(n=3, temperature=2.0, seed=1, max_tokens=8, ignore_eos=True)
    first, second = (llm.generate("the hen", params)[0].outputs for _ in range(2))
    assert [o.token_ids for o in first] == [o.token_ids for o in second]
    assert len({tuple(o.token_ids) for o in first}) == 3
    assert [o.index for o in first] == [0, 1, 2]


def test_a_stop_string_ends_the_answer_and_does_not_show(llm):
    free = llm.generate("the hen", SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))[0].outputs[0]
    stop = free.text[2:5]
    stopped = llm.generate("the hen", SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=stop))[0]
    assert stopped.outputs[0].text == free.text[: free.text.index(stop)]
    assert (stopped.outputs[0].finish_reason, stopped.outputs[0].stop_reason) == ("stop", stop)
    assert not llm._core._scheduler.has_unfinished


def test_log_probabilities_of_a_greedy_answer(llm):
    output = llm.generate("the hen", SamplingParams(temperature=0, max_tokens=4, logprobs=3, ignore_eos=True))[
        0
    ].outputs[0]
    assert len(output.logprobs) == 4
    assert all(scores[token].rank == 1 for scores, token in zip(output.logprobs, output.token_ids, strict=True))
    total = sum(scores[token].logprob for scores, token in zip(output.logprobs, output.token_ids, strict=True))
    assert output.cumulative_logprob == pytest.approx(total)


def test_fewer_tiles_by_request_and_by_engine(folder, llm):
    prompt = {"prompt": user("the hen"), "multi_modal_data": {"image": Image.new("RGB", (400, 300))}}
    assert llm.generate(prompt, GREEDY)[0].usage.tiles == 13
    assert llm.generate(prompt, GREEDY, mm_processor_kwargs={"max_dynamic_patch": 4})[0].usage.tiles == 5
    small = LLM(str(folder), mm_processor_kwargs={"max_dynamic_patch": 1}, max_model_len=256)
    assert small.generate(prompt, GREEDY)[0].usage.tiles == 1


def test_a_video_as_frames(llm):
    frames = np.zeros((3, 40, 60, 3), np.uint8)
    output = llm.generate({"prompt": "<video>\nthe hen", "multi_modal_data": {"video": frames}}, GREEDY)[0]
    assert output.usage.tiles == 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda llm: llm.generate(""), InvalidRequest, "prompt is empty"),
        (lambda llm: llm.generate("a b " * 600), TooLong, r"prompt has \d+ tokens .* context holds 512"),
        (lambda llm: llm.generate({"promt": "a"}), UnknownOption, "no option 'promt'. Did you mean prompt?"),
        (
            lambda llm: llm.generate({"prompt": "a", "multi_modal_data": {"image": [Image.new("RGB", (9, 9))] * 5}}),
            InvalidRequest,
            r"At most 4 image\(s\) may be provided in one prompt",
        ),
        (
            lambda llm: llm.generate(
                {"prompt": "<image>", "multi_modal_data": {"image": [Image.new("RGB", (9, 9))] * 2}}
            ),
            InvalidRequest,
            "The prompt has 1 <image> markers for 2 pictures",
        ),
        (
            lambda llm: llm.generate(
                {"prompt": "<image>", "multi_modal_data": {"image": Image.new("1", (300_000, 1))}}
            ),
            InvalidMedia,
            "300000x1",
        ),
        (lambda llm: llm.generate("a", [GREEDY] * 2), InvalidRequest, "2 sampling_params for 1 prompts"),
        (
            lambda llm: llm.chat(
                [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_pil", "image_pil": Image.new("RGB", (9, 9))},
                            {"type": "text", "text": "<image> <image>"},
                        ],
                    }
                ]
            ),
            InvalidRequest,
            "The user message has 2 <image> markers for 1",
        ),
        (lambda llm: llm.chat([{"role": "usr", "content": "a"}]), InvalidRequest, "role must be one of"),
        (
            lambda llm: llm.chat([{"role": "user", "content": "a"}], chat_template_kwargs={"enable_thinkin": True}),
            UnknownOption,
            "Did you mean enable_thinking?",
        ),
        (
            lambda llm: llm.generate("a", mm_processor_kwargs={"max_dynamic_patches": 1}),
            UnknownOption,
            "Did you mean max_dynamic_patch?",
        ),
        (lambda llm: LLM("demo", max_model_length=5), UnknownOption, "Did you mean max_model_len?"),
    ],
)
def test_bad_input_is_named_and_the_engine_lives(llm, call, error, message):
    with pytest.raises(error, match=message):
        call(llm)
    assert llm.generate("the hen", GREEDY)[0].finished


def test_a_prompt_asked_again_is_cached_unless_it_is_salted_or_switched_off(folder, llm):
    prompt = {"prompt": user("What is this, and what is it for?") * 3, "multi_modal_data": {}}
    prompt["prompt"] = prompt["prompt"].replace("<image>", "")
    first, again = llm.generate(prompt, GREEDY)[0], llm.generate(prompt, GREEDY)[0]
    salted = llm.generate({**prompt, "cache_salt": "another"}, GREEDY)[0]
    assert (first.num_cached_tokens, salted.num_cached_tokens) == (0, 0)
    assert again.num_cached_tokens == again.usage.cached_tokens == (len(again.prompt_token_ids) - 1) // 16 * 16 > 0
    assert first.outputs[0].token_ids == again.outputs[0].token_ids == salted.outputs[0].token_ids
    with LLM(str(folder), max_model_len=512, dtype="float32", enable_prefix_caching=False) as plain:
        assert [plain.generate(prompt, GREEDY)[0].num_cached_tokens for _ in range(2)] == [0, 0]


FREE = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def test_an_answer_says_which_tiles_were_encoded_for_it(folder):
    picture = Image.frombytes("RGB", (80, 40), bytes(range(256)) * 37 + bytes(128))
    with LLM(str(folder), max_model_len=512, dtype="float32", enable_prefix_caching=False) as llm:
        asked = {"prompt": user("What?"), "multi_modal_data": {"image": picture}}
        first, again = (llm.generate(asked, GREEDY, use_tqdm=False)[0].pictures for _ in range(2))
    [new], [known] = first, again
    assert (new.size, new.grid, len(new.encoded)) == ((80, 40), known.grid, first[0].grid[0] * first[0].grid[1] + 1)
    assert all(new.encoded)
    assert not any(known.encoded)


def test_a_bad_word_does_not_appear(llm):
    free = llm.generate("the hen", FREE)[0].outputs[0]
    for start in (0, 4):
        word = llm.get_tokenizer().decode(free.token_ids[start : start + 2], skip_special_tokens=False)
        if "\ufffd" not in word:
            assert word.strip() not in llm.generate("the hen", FREE.with_(bad_words=[word]))[0].outputs[0].text
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    spelled = llm.generate("the hen", FREE.with_(bad_words=letters))[0].outputs[0].token_ids
    single = {llm.inputs.tokenizer.encode_text(letter)[0] for letter in letters}
    assert not single & set(spelled)


def test_allowed_tokens_and_bias_steer_the_answer(llm):
    allowed = [40, 41, 42]
    params = FREE.with_(temperature=1.0, seed=3, allowed_token_ids=allowed, max_tokens=40)
    assert set(llm.generate("the hen", params)[0].outputs[0].token_ids) == set(allowed)
    steered = llm.generate("the hen", FREE.with_(logit_bias={"77": 100.0}))[0].outputs[0]
    assert set(steered.token_ids) == {77}
    away = llm.generate("the hen", FREE.with_(logit_bias=dict.fromkeys(steered.token_ids, -100.0)))[0].outputs[0]
    assert 77 not in away.token_ids


def test_no_stop_token_before_min_tokens(llm):
    free = llm.generate("the hen", FREE)[0].outputs[0].token_ids
    stop = free[3]
    stopped = llm.generate("the hen", FREE.with_(stop_token_ids=[stop]))[0].outputs[0]
    assert (stopped.token_ids, stopped.stop_reason) == (free[: free.index(stop) + 1], stop)
    later = llm.generate("the hen", FREE.with_(stop_token_ids=[stop], min_tokens=8))[0].outputs[0]
    assert len(later.token_ids) >= 8
    assert stop not in later.token_ids[:8]


def test_an_end_token_is_passed_over_if_it_is_ignored(llm):
    end = SPECIAL_IDS["<|im_end|>"]
    eager = SamplingParams(temperature=0, max_tokens=5, logit_bias={end: 100})
    assert llm.generate("the hen", eager)[0].outputs[0].finish_reason == "stop"
    ignoring = llm.generate("the hen", eager.with_(ignore_eos=True))[0].outputs[0]
    assert (ignoring.token_ids, ignoring.finish_reason) == ([end] * 5, "length")
    late = llm.generate("the hen", eager.with_(ignore_eos=True, min_tokens=3))[0].outputs[0].token_ids
    assert end not in late[:3]  # as vLLM's benchmarks ask, whose answers have no end in them
    assert late[3:] == [end] * 2
    patient = llm.generate("the hen", eager.with_(min_tokens=3))[0].outputs[0].token_ids
    assert (len(patient), patient[3], end in patient[:3]) == (4, end, False)


def test_n_seeded_answers_are_those_of_their_seeds(llm):
    params = SamplingParams(temperature=1.5, max_tokens=8, ignore_eos=True, seed=20)
    together = llm.generate("the hen", params.with_(n=3))[0].outputs
    apart = [llm.generate("the hen", params.with_(seed=20 + i))[0].outputs[0] for i in range(3)]
    assert [output.token_ids for output in together] == [output.token_ids for output in apart]


def test_without_a_seed_answers_differ(llm):
    params = SamplingParams(temperature=2.0, max_tokens=20, ignore_eos=True)
    assert len({tuple(llm.generate("the hen", params)[0].outputs[0].token_ids) for _ in range(3)}) == 3


def test_the_limit_of_log_probabilities_is_the_engine_s(folder, llm):
    with pytest.raises(InvalidRequest, match="Requested sample logprobs of 30, which is greater than max allowed: 20"):
        llm.generate("the hen", FREE.with_(logprobs=30))
    with LLM(str(folder), max_model_len=512, dtype="float32", max_logprobs=-1) as generous:
        scores = generous.generate("the hen", FREE.with_(logprobs=-1, max_tokens=1))[0].outputs[0].logprobs[0]
    assert len(scores) == json.loads((folder / "config.json").read_text())["llm_config"]["vocab_size"]
    assert sum(np.exp(score.logprob) for score in scores.values()) == pytest.approx(1, abs=1e-4)


def test_priorities_are_taken_where_they_count(folder, llm):
    with LLM(str(folder), max_model_len=64, dtype="float32", scheduling_policy="priority") as other:
        outputs = other.generate(["the hen", "a hen"], GREEDY, priority=[1, 0])
    assert [output.finished for output in outputs] == [True, True]
    no_list = "priority must be a list of 2 whole numbers"
    for priority, message in (([1, 0], "no effect under"), ([1], no_list), (["a", 0], no_list), (1.5, no_list)):
        with pytest.raises(InvalidRequest, match=message):
            llm.generate(["the hen", "a hen"], GREEDY, priority=priority)


@pytest.mark.parametrize("budget", [64, 7])
def test_prompt_logprobs_are_those_of_the_whole_prompt(folder, budget):
    """Against transformers, whole and in chunks, behind a cached prefix, and with n answers."""
    prompt = [*range(40, 80, 3)]
    ids = torch.tensor([prompt])
    theirs = reference_model(write_hf(folder.parent / f"hf{budget}", SPECS["qwen2-300m"]))
    with torch.no_grad():
        expected = theirs(ids).logits[0].log_softmax(-1)
    options = {
        "max_model_len": 64,
        "dtype": "float32",
        "max_num_batched_tokens": budget,
        "max_num_seqs": 2,
        "block_size": 4,
    }
    with LLM(str(folder), **options) as llm:
        llm.generate([prompt], SamplingParams(max_tokens=1))
        output = llm.generate([prompt], SamplingParams(max_tokens=2, n=2, seed=1, prompt_logprobs=3))[0]
    assert output.num_cached_tokens == 0
    first, *scores = output.prompt_logprobs
    assert first is None
    assert len(scores) == len(prompt) - 1
    for place, row in enumerate(scores):
        assert prompt[place + 1] in row
        assert 3 <= len(row) <= 4
        for token, score in row.items():
            assert score.logprob == pytest.approx(float(expected[place, token]), abs=1e-4)
            assert score.rank == int((expected[place] > expected[place, token]).sum()) + 1


def test_no_prompt_logprobs_unless_asked_for(llm):
    assert llm.generate("the hen", GREEDY)[0].prompt_logprobs is None
    assert llm.generate([[5]], GREEDY.with_(prompt_logprobs=0))[0].prompt_logprobs == [None]
    with pytest.raises(InvalidRequest, match=r"prompt logprobs of 21, .* max allowed: 20"):
        llm.generate("the hen", GREEDY.with_(prompt_logprobs=21))


def test_statistics_are_logged_where_they_are_wanted(folder, caplog, monkeypatch):
    monkeypatch.setenv("VLLM_LOG_STATS_INTERVAL", "0")
    for disabled in (True, False):
        caplog.clear()
        with caplog.at_level("INFO", "tilewise"), LLM(str(folder), max_model_len=64, disable_log_stats=disabled) as llm:
            llm.generate("the hen", GREEDY)
        assert any(record.getMessage().startswith("Engine 000: Avg") for record in caplog.records) is not disabled
    monkeypatch.setenv("VLLM_LOG_STATS_INTERVAL", "often")
    with pytest.raises(InvalidConfig, match="a number of seconds, at least 0, found 'often'"):
        LLM(str(folder), max_model_len=64, disable_log_stats=False)


def test_a_picture_sent_again_counts_as_a_hit_unless_nothing_is_kept(folder):
    prompt = {"prompt": user("the hen"), "multi_modal_data": {"image": ImageAsset("stop_sign").pil_image}}
    for gigabytes, expected in ((4, (2, 1)), (0, (0, 0))):
        with LLM(str(folder), max_model_len=512, mm_processor_cache_gb=gigabytes) as llm:
            first, again = (llm.generate(prompt, GREEDY)[0].outputs[0].token_ids for _ in range(2))
            assert again == first
            assert (llm.counters.mm_cache_queries, llm.counters.mm_cache_hits) == expected


def test_the_room_for_requests_is_logged_in_vllms_words(folder, caplog):
    with caplog.at_level("INFO", "tilewise"):
        LLM(str(folder), max_model_len=1024, max_num_seqs=3).close()
    lines = [record.getMessage() for record in caplog.records]
    assert "GPU KV cache size: 3,072 tokens" in lines
    assert "Maximum concurrency for 1,024 tokens per request: 3.00x" in lines


def test_names_that_programs_read_of_results_and_engine(llm, folder):
    (output,) = llm.generate(["the hen"], GREEDY)
    metrics, answer = output.metrics, output.outputs[0]
    assert metrics.first_token_time - metrics.arrival_time == pytest.approx(output.timing.time_to_first_token, abs=1e-5)
    assert metrics.finished_time == metrics.last_token_time >= metrics.first_token_time >= metrics.first_scheduled_time
    assert metrics.first_token_ts == output.timing.first_token
    assert metrics.num_generation_tokens == len(answer.token_ids)
    assert answer.finished()
    absent = ("encoder_prompt", "encoder_prompt_token_ids", "lora_request", "kv_transfer_params")
    assert [getattr(output, name) for name in absent] == [None] * 4
    assert (answer.lora_request, answer.routed_experts, output.multi_modal_placeholders) == (None, None, {})
    engine = llm.llm_engine
    assert engine.model_config.max_model_len == llm.model_config.max_model_len == 512
    config = json.loads((folder / "config.json").read_text())
    assert llm.model_config.hf_config.vision_config.hidden_size == config["vision_config"]["hidden_size"]
    assert llm.supported_tasks == list(llm.get_supported_tasks()) == ["generate"]
    engine.add_request("one", "the hen", GREEDY)
    results = []
    while engine.has_unfinished_requests():
        results += engine.step()
    assert results[-1].outputs[0].token_ids == answer.token_ids


def test_pictures_without_a_place_are_named(llm, caplog, monkeypatch):
    monkeypatch.setattr("tilewise.entrypoints.setup.LOG", IgnoredLog())
    picture = {"image": ImageAsset("stop_sign").pil_image}
    llm.generate({"prompt": user("What?"), "multi_modal_data": picture}, GREEDY)
    assert "prompt_without_image_marker" not in caplog.text
    for _ in range(2):
        llm.generate({"prompt": "What?", "multi_modal_data": picture}, GREEDY)
    assert caplog.text.count("prompt_without_image_marker") == 1


@pytest.mark.parametrize("n", [1, 2])
def test_an_answer_says_where_its_time_went(llm, n):
    sampling = SamplingParams(temperature=0.5, max_tokens=4, n=n, ignore_eos=True)
    url = "data:image/png;base64," + base64.b64encode(png_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "the hen"}]
    timing = llm.chat([{"role": "user", "content": content}], sampling)[0].timing
    assert min(timing.inputs.download, timing.inputs.decode, timing.inputs.preprocess, timing.prefill) > 0
    assert timing.total == pytest.approx(timing.time_to_first_token + timing.decode)
    known = timing.inputs.total + timing.queue + timing.prefill + timing.decode
    assert known <= timing.total  # what is missing is the way between the parts
    assert timing.encode <= timing.queue + timing.prefill


def test_an_answer_that_a_stop_string_ends_has_all_its_times(llm):
    text = llm.generate("the hen", GREEDY)[0].outputs[0].text
    output = llm.generate("the hen", GREEDY.with_(stop=[text[1:3]]))[0]
    assert output.outputs[0].stop_reason == text[1:3]
    assert None not in (output.timing.total, output.timing.queue, output.timing.prefill, output.timing.decode)


def test_a_request_came_before_its_files_were_read(llm, tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes())
    prompt = {"prompt": user("the hen"), "multi_modal_data": {"image": tmp_path / "a.png"}}
    timing = llm.generate(prompt, GREEDY)[0].timing
    assert timing.inputs.download == 0 < timing.inputs.decode
    assert timing.arrival + timing.inputs.total <= timing.engine.queued


def test_overlapped_steps_answer_alike(folder, llm):
    prompts = ["the hen", "a hen in the rain", "on"]
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]
    with LLM(str(folder), max_model_len=512, dtype="float32", async_scheduling=True) as other:
        for _ in range(2):
            assert [output.outputs[0].token_ids for output in other.generate(prompts, GREEDY)] == expected
        text = "".join(text for text, _ in other.stream_chat([{"role": "user", "content": "the hen"}], GREEDY))
        assert text == llm.chat([{"role": "user", "content": "the hen"}], GREEDY)[0].outputs[0].text


def test_calls_of_vllms_programs(llm):
    """Arguments at vLLM's defaults change nothing; those of its other releases are taken as well."""
    messages = [{"role": "user", "content": "the hen"}]
    plain = llm.chat(messages, GREEDY)[0].outputs[0].token_ids
    dressed = llm.chat(
        messages,
        GREEDY,
        False,
        None,
        add_generation_prompt=True,
        continue_final_message=False,
        chat_template=None,
        chat_template_content_format="openai",
        tools=None,
        priority=None,
        tokenization_kwargs=None,
    )
    assert dressed[0].outputs[0].token_ids == plain
    ids = llm.inputs.tokenizer.encode_text("the hen")
    answers = [
        llm.generate(prompts="the hen", sampling_params=GREEDY, lora_request=[None], use_tqdm=False),
        llm.generate(prompt_token_ids=[ids], sampling_params=GREEDY),
        llm.generate(["anything"], GREEDY, prompt_token_ids=[np.array(ids)]),
        llm.generate(np.array(ids), GREEDY),
    ]
    assert len({tuple(answer.outputs[0].token_ids) for (answer,) in answers}) == 1
    assert answers[2][0].prompt == "anything"


def test_a_message_goes_on_or_ends(llm):
    begun = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "the hen"}]
    output = llm.chat(begun, GREEDY, add_generation_prompt=False, continue_final_message=True)[0]
    assert output.prompt.endswith("<|im_start|>assistant\nthe hen")
    assert llm.chat(begun, GREEDY, add_generation_prompt=False)[0].prompt.endswith("the hen<|im_end|>\n")


def test_a_results_own_ids_with_their_pictures_give_the_same_answer(llm):
    pictures = [ImageAsset("cherry_blossom").pil_image, ImageAsset("stop_sign").pil_image]
    prompt = "<image>\nfirst <image>\nsecond"
    first = llm.generate({"prompt": prompt, "multi_modal_data": {"image": pictures}}, GREEDY)[0]
    again = llm.generate({"prompt_token_ids": first.prompt_token_ids, "multi_modal_data": {"image": pictures}}, GREEDY)[
        0
    ]
    assert again.prompt_token_ids == first.prompt_token_ids
    assert again.outputs[0].token_ids == first.outputs[0].token_ids


def test_what_is_assigned_later_changes_nothing_that_was_enqueued(llm):
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    names = llm.enqueue(["the hen", "other"], params)
    params.max_tokens = 5
    outputs = llm.wait_for_completion()
    assert [output.request_id for output in outputs] == names
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 2]
    assert llm.wait_for_completion() == []


def test_ids_without_text_and_a_prompt_computed_anew(llm):
    prompt, free = "the hen in the inn " * 10, GREEDY.with_(ignore_eos=True)
    text = llm.generate(prompt, free)[0].outputs[0]
    bare = llm.generate(prompt, free.with_(detokenize=False, skip_reading_prefix_cache=True))[0]
    assert (bare.outputs[0].text, bare.outputs[0].token_ids) == ("", text.token_ids)
    assert bare.num_cached_tokens == 0 < llm.generate(prompt, free)[0].num_cached_tokens
    assert llm.reset_prefix_cache()
    assert llm.generate(prompt, free)[0].num_cached_tokens == 0


def test_default_sampling_params_are_the_checkpoints(folder):
    (folder / "generation_config.json").write_text('{"temperature": 0.3, "top_k": 7, "max_new_tokens": 3}')
    try:
        with LLM(str(folder), max_model_len=64, override_generation_config={"top_k": 9}) as llm:
            expected = SamplingParams(temperature=0.3, top_k=9, max_tokens=3)
            assert llm.get_default_sampling_params() == expected
            assert len(llm.generate("the hen")[0].outputs[0].token_ids) <= 3
        with LLM(str(folder), max_model_len=64, generation_config="vllm") as llm:
            assert llm.get_default_sampling_params() == SamplingParams()
    finally:
        (folder / "generation_config.json").unlink()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda llm: llm.embed("a"), NotImplementedError, "LLM.embed is not possible. Models here answer"),
        (lambda llm: llm.sleep(), NotImplementedError, "close this engine"),
        (lambda llm: llm.generate("a", lora_request=object()), InvalidRequest, "adapter=FOLDER"),
        (lambda llm: llm.chat([], GREEDY, tokenization_kwargs={"a": 1}), InvalidRequest, "truncate_prompt_tokens"),
        (lambda llm: llm.chat([], GREEDY, chat_template_content_format="json"), InvalidRequest, "auto, string, openai"),
        (
            lambda llm: llm.chat([{"role": "user", "content": "a"}], GREEDY, chat_template="{{"),
            InvalidRequest,
            "render",
        ),
        (lambda llm: llm.generate("a", 5), InvalidRequest, "must be SamplingParams or a list of them, got 5"),
        (
            lambda llm: llm.generate(["a"], GREEDY, prompt_token_ids=[[1], [2]]),
            InvalidRequest,
            "2 entries for 1 prompts",
        ),
        (lambda llm: LLM("demo", chat_template="x"), InvalidConfig, "chat_template is not possible"),
        (lambda llm: LLM(None), InvalidConfig, "model must be a text, got None"),
        (lambda llm: LLM("demo", override_generation_config={"temprature": 0}), InvalidConfig, "mean temperature"),
        (lambda llm: llm.generate("a", use_tqmd=True), UnknownOption, r"'use_tqmd'. Did you mean use_tqdm\?"),
        (lambda llm: llm.chat([], use_tqmd=True), UnknownOption, r"Did you mean use_tqdm\?"),
        (lambda llm: llm.get_tokenizer()("a", return_offsets_mapping=True), InvalidRequest, "return_offsets_mapping"),
        (lambda llm: llm.get_tokenizer()("a", trunkation=True), UnknownOption, r"Did you mean truncation\?"),
        (lambda llm: llm.get_tokenizer().save_pretrained("x"), NotImplementedError, "Copy tokenizer.json"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(llm, call, error, message):
    with pytest.raises(error, match=message):
        call(llm)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("from tilewise import PoolingParams", "tilewise has no PoolingParams: models here answer"),
        ("from tilewise.inputs import EmbedsPrompt", "send text or ids"),
        ("from tilewise.lora.request import LoRARequests", r"Did you mean LoRARequest\?"),
        ("import tilewise.v1.worker", "tilewise.v1 has no worker: one machine computes"),
        ("from tilewise import SamplingParam", r"Did you mean SamplingParams\?"),
        ("from tilewise.sampling_params import SamplingParam", r"Did you mean SamplingParams\?"),
        ("from tilewise.multimodal.utils import MediaConnector", "fetch_image and fetch_video"),
        ("from tilewise.v1.metrics.reader import Counter", "LLM.counters has the figures"),
        ("import tilewise.usage.usage_lib", "nothing is reported"),
        ("from tilewise.transformers_utils.tokenizer import get_tokenizer", r"LLM.get_tokenizer\(\)"),
        ("from tilewise.entrypoints.chat_utils import load_chat_template", "LLM.chat reads conversations"),
        ("import tilewise.envs as envs", "environment"),
        ("from tilewise.config import ModelConfig", "keywords of LLM and EngineArgs"),
        ("from tilewise.config import CompilationConfig", "objects as dicts"),
        ("from tilewise.entrypoints.openai.api_server import run_server", "run `tilewise serve`"),
        ("from tilewise.entrypoints.openai.protocol import ChatCompletionRequest", "run `tilewise serve`"),
        ("from tilewise.utils import get_open_port", "docs/python.md lists what can be imported"),
        ("import tilewise.nobody_knows_this", "No module named"),
    ],
)
def test_imports_of_what_cannot_be_had_say_why(statement, words):
    with pytest.raises(ImportError, match=words):
        exec(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "from tilewise.sampling_params import BeamSearchParams as found",
        "from tilewise.outputs import BeamSearchOutput as found",
        "from tilewise.beam_search import BeamSearchSequence as found",
        "from tilewise.utils import random_uuid as found",
        "from tilewise.distributed import cleanup_dist_env_and_memory as found; found()",
        "from tilewise.version import __version__ as found",
        "from tilewise.logger import init_logger as found; found('a').info_once('said %s', 1)",
        "from tilewise.foreign import modules as found",
    ],
)
def test_names_of_vllms_modules(statement):
    found: dict[str, object] = {}
    exec(statement, found)
    assert found["found"] is not None


def test_a_name_that_is_not_there_is_no_attribute():
    import tilewise.utils

    assert not hasattr(tilewise, "PoolingParams")
    assert not hasattr(tilewise.utils, "get_open_port")


def test_a_message_is_said_once(caplog):
    from tilewise.foreign.modules import init_logger

    logger = init_logger("tilewise.program")
    with caplog.at_level("INFO", "tilewise.program"):
        for name in ("a", "b", "a"):
            logger.info_once("from %s", name, scope="local")
    assert [record.getMessage() for record in caplog.records] == ["from a", "from b"]


def test_a_picture_that_was_closed_is_not_called_damaged(llm: LLM) -> None:
    picture = Image.open(min(PICTURES.glob("*.png")))
    picture.close()
    with pytest.raises(InvalidMedia, match="closed before it was read: call its load"):
        llm.chat([{"role": "user", "content": [{"type": "image_pil", "image_pil": picture}]}])

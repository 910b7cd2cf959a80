"""Flags of the engine and of sampling on the command line, default sampling options, conversations, a tqdm bar."""

from tqdm import tqdm

from tilewise import LLM, EngineArgs
from tilewise.engine.arg_utils import FlexibleArgumentParser


def parser_of_program() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(description="chat")
    EngineArgs.add_cli_args(parser)
    parser.set_defaults(model="demo")
    group = parser.add_argument_group("Sampling parameters")
    group.add_argument("--max-tokens", type=int)
    group.add_argument("--temperature", type=float)
    parser.add_argument("--chat-template-path", type=str)
    return parser


def main(args: dict) -> None:
    max_tokens, temperature = args.pop("max_tokens"), args.pop("temperature")
    chat_template = args.pop("chat_template_path")
    llm = LLM(**args)
    sampling_params = llm.get_default_sampling_params()
    if max_tokens is not None:
        sampling_params.max_tokens = max_tokens
    if temperature is not None:
        sampling_params.temperature = temperature
    conversation = [
        {"role": "system", "content": "You are a helpful assistant"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! How can I help you?"},
        {"role": "user", "content": "What is the colour of the sky?"},
    ]
    for output in llm.chat(conversation, sampling_params, use_tqdm=False, chat_template=chat_template):
        print(f"one: {len(output.outputs[0].token_ids) <= sampling_params.max_tokens}, {output.finished}")
    outputs = llm.chat([conversation for _ in range(3)], sampling_params, use_tqdm=lambda **bar: tqdm(**bar))
    print(f"several: {len({output.outputs[0].text for output in outputs})} answer to {len(outputs)}")


if __name__ == "__main__":
    main(vars(parser_of_program().parse_args()))

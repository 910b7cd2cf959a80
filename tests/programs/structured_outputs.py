"""Answers of a given form, by the newer and by the older name of the option."""

import json
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from tilewise import LLM, SamplingParams
from tilewise.sampling_params import GuidedDecodingParams, StructuredOutputsParams


class CarType(StrEnum):
    SEDAN = "sedan"
    SUV = "SUV"


class CarDescription(BaseModel):
    model_config = ConfigDict(extra="forbid")

    brand: CarType
    doors: bool


llm = LLM(model="demo", max_model_len=512, seed=0)


def ask(prompt: str, **form) -> str:
    return (
        llm.generate(prompts=prompt, sampling_params=SamplingParams(temperature=0, max_tokens=60, **form))[0]
        .outputs[0]
        .text
    )


choice = StructuredOutputsParams(choice=["Positive", "Negative"])
print(ask("Classify this: it is wonderful!", structured_outputs=choice) in ("Positive", "Negative"))
older = GuidedDecodingParams(regex=r"\w{2,9}@\w{2,9}\.com\n", backend="xgrammar")
print(ask("An address:", guided_decoding=older, stop=["\n"]).endswith(".com"))
schema = StructuredOutputsParams(json=CarDescription.model_json_schema())
print(sorted(json.loads(ask("A car in JSON:", structured_outputs=schema))))

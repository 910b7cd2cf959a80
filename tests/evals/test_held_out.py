"""The shipped questions are there, whole, and are not those of the shipped pictures."""

from __future__ import annotations

import yaml

from tilewise.evals import TASKS


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: node.value)


def test_the_group_names_every_task_and_each_has_its_file():
    group = yaml.safe_load((TASKS / "tilewise_demo.yaml").read_text())
    files = {path.stem for path in TASKS.glob("tilewise_demo_*.yaml")}
    assert set(group["task"]) == files
    assert len(files) == 11


def test_tasks_ask_as_the_shared_part_says():
    for path in TASKS.glob("tilewise_demo_*.yaml"):
        task = yaml.load(path.read_text(), Loader)
        assert task["task"] == path.stem == f"tilewise_demo_{task['dataset_kwargs']['task']}"
        shared = yaml.load((TASKS / task["include"]).read_text(), Loader)
        assert shared["generation_kwargs"]["skip_special_tokens"] is False  # boxes are written with them

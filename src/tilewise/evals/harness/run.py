"""Runs one evaluation. Folders, options and tasks are checked before a model is loaded: mistakes cost least there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.evals.harness.find_tasks import find_tasks
from tilewise.evals.output import MMMU, check_writable, write_answers, write_report, write_run
from tilewise.host import require_extra


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of an evaluation. Names and meanings are those of lm_eval's flags, where it has them."""

    tasks: tuple[str, ...]
    engine: dict[str, Any] = field(default_factory=dict)
    """Options of the engine, `model` among them."""
    limit: float | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    gen_kwargs: dict[str, Any] | None = None
    include_path: Path | None = None
    data_dir: Path | None = None
    output_path: Path | None = None
    log_samples: bool = True
    predict_only: bool = False
    batch_size: int | str = "auto"
    max_gen_toks: int = 256
    max_images: int | None = None
    enable_thinking: bool = False
    seed: int = 1234
    resume_dir: Path | None = None
    mmmu_json: Path | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InvalidConfig("tasks is empty: name at least one, such as tilewise_demo.")
        if self.limit is not None and not self.limit > 0:
            raise InvalidConfig(
                f"limit must be above 0, got {self.limit}: a count of rows, or below 1 a share of them."
            )
        if self.batch_size != "auto" and not (isinstance(self.batch_size, int) and self.batch_size > 0):
            raise InvalidConfig(f"batch_size must be auto or a whole number above 0, got {self.batch_size!r}.")

    @property
    def store(self) -> Path | None:
        """Folder in which answers are kept as they come; None = they are not kept."""
        return self.resume_dir or self.output_path


def evaluate(options: EvalOptions) -> dict[str, Any]:
    """Run an evaluation, write its files, and return lm_eval's results (`samples` among them)."""
    require_extra("lm_eval", "eval", "Evaluation")
    for path in (options.output_path, options.resume_dir):
        check_writable(path)
    check_writable(options.mmmu_json and options.mmmu_json.parent)
    EngineConfig.of(**options.engine)  # what is wrong with it costs no loading of tasks
    manager, tasks = find_tasks(options.tasks, options.include_path, options.data_dir)
    if options.mmmu_json and not any(name.startswith(MMMU) for name in options.tasks):
        raise InvalidConfig(f"mmmu_json needs a task of MMMU, such as {MMMU}, got {', '.join(options.tasks)}.")
    return _run(options, manager, tasks)


def _run(options: EvalOptions, manager: Any, tasks: list[Any]) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    from tilewise.evals.harness.models import EVERY_PICTURE, PictureModel

    engine = {**options.engine}
    pretrained = engine.pop("model", "demo")
    most = (engine.get("limit_mm_per_prompt") or {}).get("image", EVERY_PICTURE)
    tracker = EvaluationTracker(output_path=str(options.output_path) if options.output_path else None)
    model = PictureModel(
        pretrained,
        batch_size=options.batch_size,
        max_gen_toks=options.max_gen_toks,
        max_images=most if options.max_images is None else options.max_images,
        enable_thinking=options.enable_thinking,
        resume_dir=options.store,
        seed=options.seed,
        **engine,
    )
    try:
        results = simple_evaluate(
            model=model,
            model_args={"pretrained": pretrained, **engine},
            tasks=tasks,
            task_manager=manager,
            num_fewshot=options.num_fewshot,
            batch_size=options.batch_size,
            limit=options.limit,
            log_samples=True,
            evaluation_tracker=tracker,
            system_instruction=options.system_instruction,
            apply_chat_template=options.apply_chat_template,
            fewshot_as_multiturn=options.fewshot_as_multiturn and bool(options.apply_chat_template),
            gen_kwargs=options.gen_kwargs,
            predict_only=options.predict_only,
            random_seed=options.seed,
            numpy_random_seed=options.seed,
            torch_random_seed=options.seed,
            fewshot_random_seed=options.seed,
        )
        results["config"]["model"] = "tilewise-vlm"
        results["answers"] = model.asker.answers
        return _written(options, results, tracker)
    finally:
        model.close()


def _written(options: EvalOptions, results: dict[str, Any], tracker: Any) -> dict[str, Any]:
    samples, answers = results.pop("samples"), results.pop("answers")
    if options.output_path:
        write_run(options.output_path, tracker, results, samples if options.log_samples else None)
        write_answers(options.output_path, tracker, answers)
    results["samples"], results["answers"] = samples, answers
    if options.mmmu_json:
        write_report(options.mmmu_json, results)
    return results

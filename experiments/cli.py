"""The `gvcot` command. Heavy modules are imported inside the commands, so that `gvcot --help` is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from gvcot.errors import GvcotError

app = typer.Typer(
    name="gvcot",
    help="Train, evaluate and use visual chain-of-thought image editors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(
    help="The procedural editing world, and datasets of image pairs.", no_args_is_help=True
)
rewards_app = typer.Typer(help="The built-in rewards.", no_args_is_help=True)
judge_app = typer.Typer(help="Vision-language models, or stand-ins, that judge edits.", no_args_is_help=True)
sweep_app = typer.Typer(help="Run a recipe with many settings and compare them.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(rewards_app, name="rewards")
app.add_typer(judge_app, name="judge")
app.add_typer(sweep_app, name="sweep")


Recipe = Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides: optim.lr=1e-4")
]
Resume = Annotated[Literal["auto", "never"], typer.Option(help="Continue a run that exists, or refuse to.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the full configuration and stop.")]
RunFolder = Annotated[Path | None, typer.Option(help="The run's folder; default: runs/<name of the recipe>.")]


def main(argv: list[str] | None = None) -> None:
    """Runs a command line. What a user can mend is printed without a traceback; exit code 2."""
    try:
        app(args=argv)
    except GvcotError as error:
        typer.secho(f"{type(error).__name__}: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)


@app.command()
def quickstart(overrides: Overrides = None, run_dir: RunFolder = None) -> None:
    """Improve the shipped tiny model by RL on this machine's CPU, and compare it before and after."""
    from experiments.quickstart import run_quickstart

    run_quickstart(run_dir, overrides or [])


@app.command()
def sft(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Resume = "auto",
    run_dir: RunFolder = None,
    dry_run: DryRun = False,
) -> None:
    """Supervised fine-tuning: one stage of the warm start."""
    from experiments.launch import run_sft

    run_sft(_named("sft", recipe), overrides or [], resume=resume, dry_run=dry_run, run_dir=run_dir)


@app.command()
def rl(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Resume = "auto",
    run_dir: RunFolder = None,
    dry_run: DryRun = False,
) -> None:
    """Reinforcement learning with the recipe's rewards."""
    from experiments.launch import run_rl

    run_rl(_named("rl", recipe), overrides or [], resume=resume, dry_run=dry_run, run_dir=run_dir)


@app.command("eval")
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A model folder, or a run folder (its newest model).")],
    overrides: Overrides = None,
    split: Annotated[
        Literal["val", "test", "bench"], typer.Option(help="val for tuning, the others for claims.")
    ] = "bench",
    dry_run: DryRun = False,
) -> None:
    """Measure a model: where it draws its reasoning, and what it edits."""
    from experiments.launch import run_eval

    run_eval(checkpoint, overrides or [], split=split, dry_run=dry_run)


@app.command()
def edit(
    image: Annotated[Path, typer.Argument(help="The image to edit.")],
    instruction: Annotated[str, typer.Argument(help='What to do, e.g. "remove the red circle".')],
    checkpoint: Annotated[Path | None, typer.Option(help="A model folder; default: the shipped one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the reasoning image and the edit.")] = Path("edit"),
    num_steps: Annotated[int, typer.Option(min=1, help="ODE steps per image.")] = 50,
    shift: Annotated[float, typer.Option(help="Of the steps towards noise.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    text_scale: Annotated[float, typer.Option(help="Guidance by the instruction; 1: none.")] = 1.0,
    image_scale: Annotated[float, typer.Option(help="Guidance by the images; 1: none.")] = 1.0,
) -> None:
    """Edit one image: saves the reasoning image, the region read from it, and the edit."""
    from experiments.edit import run_edit
    from gvcot.types import GuidanceConfig

    run_edit(
        image,
        instruction,
        checkpoint,
        out,
        num_steps=num_steps,
        shift=shift,
        seed=seed,
        guidance=GuidanceConfig(text_scale=text_scale, image_scale=image_scale),
    )


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="Run folders.")],
) -> None:
    """Write report.html into each run folder: results, curves, pictures, configuration."""
    from experiments.report import build_report

    for run_dir in run_dirs:
        typer.echo(build_report(run_dir))


@app.command("export")
def export_model(
    checkpoint: Annotated[Path, typer.Argument(help="A model folder, or a run folder (its result).")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    dtype: Annotated[
        Literal["stored", "fp32", "bf16", "fp16"],
        typer.Option(help="Of the weights; stored: as now."),
    ] = "stored",
    step: Annotated[
        int | None,
        typer.Option(min=-1, help="Of a run's checkpoint, also while it goes on; -1: the newest."),
    ] = None,
) -> None:
    """Write a model as a folder of its own, in the format of BAGEL's checkpoints."""
    from experiments.launch import run_export

    run_export(checkpoint, out, dtype=dtype, step=step)


@app.command()
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(help="Run folders, or evaluations' JSON files.")],
    split: Annotated[str, typer.Option(help="Which evaluations.")] = "val",
    against: Annotated[
        list[Path] | None, typer.Option(help="Compare ends with this run's (or file); may be repeated.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; may be repeated.")] = None,
) -> None:
    """Before and after training, or against other runs' ends, with paired bootstrap intervals (markdown).

    Intervals are over scenes; those of means of several runs are over scenes and runs.
    """
    from experiments.bootstrap import compare as differences
    from experiments.bootstrap import compare_means, first_and_last, latest, markdown

    metrics = metric or ["mask_iou", "edit_accuracy", "preservation", "format"]
    if not against:
        rows = {str(r): differences(*first_and_last(r, split), metrics) for r in run_dirs}
    else:
        before, after = [latest(r, split) for r in against], [latest(r, split) for r in run_dirs]
        alone = before[0] if len(before) == 1 else None
        named = zip(run_dirs, after, strict=True)
        rows = {str(r): differences(alone, end, metrics) for r, end in named} if alone else {}
        if len(before) > 1 or len(after) > 1:
            rows["mean of the runs"] = compare_means(before, after, metrics)
    typer.echo(markdown(rows))


@app.command("slices")
def show_slices(
    files: Annotated[list[Path], typer.Argument(help="Evaluations' JSON files, one per run.")],
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; may be repeated.")] = None,
    by: Annotated[Literal["task", "referral"] | None, typer.Option(help="Only by this.")] = None,
    minus: Annotated[
        str | None, typer.Option(help="Subtract this metric of the same chains, scene by scene.")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Differences from this run's file; may be repeated.")
    ] = None,
) -> None:
    """Means of evaluations by task and by kind of referral, with bootstrap intervals (markdown).

    Several files are runs with other seeds: their values are averaged, and the intervals cover them too.
    """
    from experiments.slices import markdown, slices

    rows = slices(files, metric, [by] if by else ["referral", "task"], minus=minus, against=against or [])
    typer.echo(markdown(rows))


@app.command()
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; names that end in a number are seeds.")],
    metric: Annotated[list[str], typer.Option(help="A logged metric; may be repeated.")],
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("curves.png"),
) -> None:
    """Draw several runs' curves in one picture; runs that differ in a last number are seeds of one arm."""
    from experiments.curves import plot_curves, read_curves

    plot_curves(read_curves(runs, metric)).savefig(out, dpi=100)
    typer.echo(out)


@app.command()
def signal(
    recipe: Annotated[str, typer.Argument(help="An RL recipe: a built-in name or a YAML file.")],
    overrides: Overrides = None,
    batches: Annotated[int, typer.Option(min=2, help="Rollout batches whose gradients are compared.")] = 16,
) -> None:
    """How much of a recipe's policy gradient is signal, and in which parameters, at its starting policy."""
    from rich.console import Console

    from experiments import signal as signals
    from gvcot.config import load
    from gvcot.model.pretrained import find_model, load_pretrained
    from rl.config import RLConfig

    config = load(RLConfig, _named("rl", recipe), overrides or [])
    shares = signals.signal_shares(config, load_pretrained(find_model(config.model)), batches)
    Console().print(signals.as_table(shares))


@app.command()
def condense(
    evaluation: Annotated[Path, typer.Argument(help="The JSON that an evaluation wrote.")],
    out: Annotated[Path, typer.Argument(help="The file to write; gzipped if its name ends in .gz.")],
    metric: Annotated[list[str] | None, typer.Option(help="Keep this one; may be repeated.")] = None,
) -> None:
    """Keep what `compare` and `slices` need of an evaluation, some metrics by scene, in a small file."""
    from experiments import records

    records.condense(evaluation, out, metric)
    typer.echo(f"{out}: {out.stat().st_size / 1000:.0f} kB")


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Option("--plan", help="An SFT or RL recipe: what does it need on each GPU?")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes of the recipe: key=value.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that the plan is for.")] = 8,
    gpu_gib: Annotated[float, typer.Option(help="Memory of each, in GiB.")] = 80.0,
    model: Annotated[
        Path | None, typer.Option(help="Folder whose configuration is planned for; the recipe's by default.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Pixels per side; the recipe's by default.")] = None,
) -> None:
    """Check this installation and machine, or plan the memory of a run; exit code 1 if something is wrong, or
    if the run does not fit."""
    from rich.console import Console

    if recipe is not None:
        from experiments import memory_plan

        found = memory_plan.plan_recipe(recipe, overrides or [], gpus, model=model, size=size)
        Console().print(memory_plan.table(found, gpus, gpu_gib))
        if not memory_plan.fits(found, gpu_gib):
            raise typer.Exit(1)
        return
    from experiments.doctor import run_checks, table

    checks = run_checks()
    Console().print(table(checks))
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@data_app.command("show")
def data_show(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("scenes.png"),
    split: Annotated[Literal["train", "val", "test", "bench"], typer.Option(help="Which scenes.")] = "train",
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 0,
    size: Annotated[int | None, typer.Option(help="Pixels per side; 16 a cell by default.")] = None,
    level: Annotated[Literal["easy", "standard", "hard"], typer.Option(help="How hard.")] = "standard",
    settings: Annotated[list[str] | None, typer.Argument(help="Settings of the world: key=value.")] = None,
) -> None:
    """Draw scenes with their instruction, region and target into one picture."""
    from gvcot.config import parse
    from gvcot.data import scenes
    from gvcot.data.show import contact_sheet

    overrides = [f"level={level}", *([f"tasks=[{', '.join(task)}]"] if task else []), *(settings or [])]
    world = parse(scenes.WorldConfig, overrides)
    samples = scenes.samples(split, range(count), seed=seed, size=size, world=world)
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(samples).save(out)
    typer.echo(out)


@data_app.command("export-scenes")
def data_export_scenes(
    out: Annotated[Path, typer.Argument(help="The folder to write; it must be new or empty.")],
    kind: Annotated[
        Literal["folder", "parquet", "webdataset"], typer.Option("--format", help="How it is stored.")
    ] = "folder",
    num: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 1_000,
    split: Annotated[Literal["train", "val", "test", "bench"], typer.Option(help="Which scenes.")] = "train",
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 0,
    size: Annotated[int | None, typer.Option(help="Pixels per side; 16 a cell by default.")] = None,
    shard: Annotated[int, typer.Option(min=1, help="Scenes per file.")] = 1_000,
    settings: Annotated[list[str] | None, typer.Argument(help="Settings of the world: key=value.")] = None,
) -> None:
    """Write scenes as a dataset of image pairs with exact masks, such as real ones are read from."""
    from gvcot.config import parse
    from gvcot.data import scenes
    from gvcot.data.pairs.write import write

    world = parse(scenes.WorldConfig, settings or [])
    samples = (scenes.generate(seed, i, split=split, size=size, world=world) for i in range(num))
    typer.echo(f"{out}: {write(samples, out, kind, shard)} samples")


@data_app.command("check")
def data_check(
    path: Annotated[str, typer.Argument(help="A dataset of image pairs.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="How it is read: kind=..., resize=square, tasks=[...]")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Pixels per side that a run takes.")] = None,
    show: Annotated[int, typer.Option(min=0, help="How many bad samples are listed.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write all bad samples there, one JSON per line.")] = None,
) -> None:
    """Read a whole dataset and say what is in it; exit code 1 if no sample is good."""
    import json

    from rich.console import Console

    from gvcot.config import parse
    from gvcot.data.pairs.check import check, tables
    from gvcot.data.pairs.config import PairsConfig

    report = check(parse(PairsConfig, [f"path={path}", *(settings or [])]), size)
    for table in tables(report, show):
        Console().print(table)
    if report.repeated:
        typer.echo(f"{len(report.repeated)} ids come more than once, such as {report.repeated[0]}")
    if out is not None:
        out.write_text("".join(json.dumps(bad._asdict()) + "\n" for bad in report.bad))
    if not report.num_good:
        raise typer.Exit(1)


@data_app.command("speed")
def data_speed(
    recipe: Annotated[str, typer.Argument(help="A supervised stage whose step is measured.")] = "tiny-stage2",
    overrides: Overrides = None,
    level: Annotated[
        Literal["easy", "standard", "hard"] | None, typer.Option(help="How hard; default: the recipe's.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often all is measured.")] = 3,
) -> None:
    """Measure on one core what scenes cost to generate and encode, beside a training step on them."""
    from rich.console import Console

    from experiments.feeding import feed_speed

    for table in feed_speed(_named("sft", recipe), overrides or [], level, repeats):
        Console().print(table)


ApiKeyEnv = Annotated[str | None, typer.Option(help="Environment variable with the server's API key.")]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Enlarge images to at least so many pixels a side for the judge.")
]


@judge_app.command("serve")
def judge_serve(
    recipe: Annotated[str, typer.Argument(help="A judge's recipe: a shipped name, or a YAML file.")],
    overrides: Overrides = None,
    log: Annotated[Path, typer.Option(help="File for vLLM's output.")] = Path("judge.log"),
) -> None:
    """Serve a judge behind the OpenAI API: by vLLM, or one that measures Scenes exactly."""
    from experiments.judge import serve

    serve(_named("judge", recipe), overrides or [], log)


@judge_app.command("train")
def judge_train(
    recipe: Recipe = "learned",
    overrides: Overrides = None,
    resume: Resume = "auto",
    run_dir: RunFolder = None,
    dry_run: DryRun = False,
) -> None:
    """Train a tiny Qwen3-VL to judge edits of Scenes, and compare it with the truth."""
    from experiments.judge import train

    train(_named("judge-train", recipe), overrides or [], resume=resume, dry_run=dry_run, run_dir=run_dir)


@judge_app.command("agreement")
def judge_agreement(
    judge: Annotated[str, typer.Argument(help="A learned judge's folder, or the base URL of a server.")],
    model: Annotated[str, typer.Option(help="The model's name on the server.")] = "judge",
    count: Annotated[int, typer.Option(min=1, help="How many val scenes, six edits each.")] = 512,
    first: Annotated[int, typer.Option(min=0, help="Index of the first one.")] = 0,
    metadata: Annotated[bool, typer.Option(help="Send sample ids, as the scenes judge needs them.")] = False,
    api_key_env: ApiKeyEnv = None,
    image_size: ImageSize = None,
) -> None:
    """Compare any judge's scores with the exact ones, and say what it takes each kind of edit for."""
    from experiments.judge import show_agreement

    show_agreement(
        judge,
        model=model,
        count=count,
        first=first,
        api_key_env=api_key_env,
        send_metadata=metadata,
        image_size=image_size,
    )


@judge_app.command("injections")
def judge_injections(
    url: Annotated[str, typer.Argument(help="The base URL of a server.")],
    model: Annotated[str, typer.Option(help="The model's name on the server.")] = "judge",
    count: Annotated[int, typer.Option(min=1, help="How many untouched val scenes it is asked about.")] = 32,
    api_key_env: ApiKeyEnv = None,
    image_size: ImageSize = None,
) -> None:
    """Measure how far commands in instructions and images move a judge's scores."""
    from experiments.judge import show_injections

    show_injections(url, model=model, count=count, api_key_env=api_key_env, image_size=image_size)


@rewards_app.command("list")
def rewards_list() -> None:
    """Name the built-in rewards."""
    from rich.console import Console
    from rich.table import Table

    from gvcot import plugins

    table = Table("name", "what it scores")
    for name in plugins.names("reward"):
        doc = plugins.resolve("reward", name).__doc__ or ""
        table.add_row(name, doc.strip().partition("\n")[0])
    Console().print(table)


@rewards_app.command("describe")
def rewards_describe(
    name: Annotated[str, typer.Argument(help='A built-in name or "package.module:Class".')],
) -> None:
    """Explain one reward: its definition, its options and what it needs."""
    from rewards.base import described
    from rewards.registry import reward_class

    typer.echo(described(name, reward_class(name)))


@rewards_app.command("try")
def rewards_try(
    name: Annotated[str, typer.Argument(help='A built-in name or "package.module:Class".')],
    options: Annotated[list[str] | None, typer.Argument(help="The reward's options: key=value.")] = None,
    split: Annotated[Literal["train", "val"], typer.Option(help="Which scenes.")] = "val",
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 6,
    behaviour: Annotated[
        list[str] | None,
        typer.Option(help='What is drawn: a planted behaviour, or "model"; may be repeated.'),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="A dataset of image pairs instead of Scenes.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Pixels per side.")] = 64,
    checkpoint: Annotated[str, typer.Option(help="Whose codec and chains.")] = "warm_start",
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("reward.png"),
) -> None:
    """Score planted behaviours and a model's own chains, with a picture of both: what does a reward see?"""
    from rich.console import Console

    from experiments import try_reward
    from gvcot.config import parse
    from gvcot.data.pairs.config import PairsConfig
    from gvcot.data.scenes import DEFAULT
    from gvcot.data.source import first_samples, given_fields, held_out
    from gvcot.model.pretrained import find_model, load_pretrained
    from rewards.config import RewardConfig
    from rewards.planted import BEHAVIOURS
    from rewards.registry import PHASES, build_rewards

    config = parse(RewardConfig, [f"type={name}", *(f"options.{option}" for option in options or [])])
    pairs = None if data is None else PairsConfig(path=str(data), resize="square")
    reward = build_rewards({"reward": config}, PHASES | given_fields(pairs))["reward"]
    samples = first_samples(held_out(pairs, split, size=size, world=DEFAULT), count)
    planted = BEHAVIOURS if all(sample.target_HW3 is not None for sample in samples) else ()
    behaviours = behaviour or ["model", *planted]
    batches = try_reward.chains(load_pretrained(find_model(checkpoint)), samples, behaviours)
    reward.start()
    results = {drawn: reward.score(batch) for drawn, batch in batches.items()}
    Console().print(try_reward.score_table(results))
    try_reward.save(try_reward.sheet(batches, results), out)
    typer.echo(out)


@rewards_app.command("hacks")
def rewards_hacks(
    recipe: Annotated[str, typer.Argument(help="An RL recipe.")] = "tiny",
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 256,
) -> None:
    """Set a recipe's rewards against planted hacks: what fools them, and which alarm would ring."""
    from rich.console import Console

    from experiments import try_reward
    from gvcot.config import load
    from gvcot.data import scenes
    from gvcot.data.source import SAMPLE_FIELDS
    from gvcot.model.pretrained import find_model, load_pretrained
    from rewards.planted import BEHAVIOURS
    from rewards.registry import build_rewards
    from rl.config import RLConfig

    config = load(RLConfig, _named("rl", recipe), overrides or [])
    rewards = build_rewards(config.rewards, {"x_cot", "x_edit", *SAMPLE_FIELDS})
    samples = scenes.samples("val", range(count), size=config.data.size, world=config.data.world)
    batches = try_reward.chains(load_pretrained(find_model(config.model)), samples, list(BEHAVIOURS))
    for reward in rewards.values():
        reward.start()
    weights = {name: reward.weight for name, reward in config.rewards.items()}
    Console().print(try_reward.hack_table(rewards, weights, config.active_alarms(), batches))


@sweep_app.command("run")
def sweep_run(
    recipe: Annotated[str, typer.Argument(help="A sweep recipe: a shipped one's name, or a YAML file.")],
    overrides: Overrides = None,
    run_dir: RunFolder = None,
    dry_run: DryRun = False,
) -> None:
    """Run a sweep, or what is left of it; exit code 1 if a trial did not finish."""
    from experiments.sweep import run_sweep
    from experiments.sweep_config import SweepConfig
    from gvcot.config import load

    config = load(SweepConfig, _named("sweep", recipe), overrides or [])
    if not run_sweep(config, run_dir, dry_run=dry_run):
        raise typer.Exit(1)


@sweep_app.command("ablate-rewards")
def sweep_ablate_rewards(
    recipe: Annotated[
        str, typer.Argument(help="An RL recipe: a shipped one's name, or a YAML file.")
    ] = "tiny",
    overrides: Overrides = None,
    seed: Annotated[list[int] | None, typer.Option(help="Default: 0; may be repeated.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Trials at a time; default: what fits.")] = None,
    run_dir: RunFolder = None,
    dry_run: DryRun = False,
) -> None:
    """Measure what each reward of a recipe does: alone, left out, gated, and summed before normalisation."""
    from experiments.ablation import ablation, run_ablation
    from experiments.sweep import describe

    config = ablation(_named("rl", recipe), overrides or [], seeds=seed or [0], max_concurrent=max_concurrent)
    if dry_run:
        describe(config)
    elif not run_ablation(config, run_dir):
        raise typer.Exit(1)


@sweep_app.command("show")
def sweep_show(root: Annotated[Path, typer.Argument(help="The sweep's folder.")]) -> None:
    """Print a sweep's table from what is on disk, and write its report anew."""
    from experiments.sweep import show

    show(root)


def _named(group: str, recipe: str) -> str:
    """`tiny` -> `rl/tiny`; files and full names stay as they are."""
    is_file = recipe.endswith((".yaml", ".yml"))
    return recipe if is_file or recipe.startswith(f"{group}/") else f"{group}/{recipe}"


if __name__ == "__main__":
    main()

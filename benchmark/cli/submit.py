"""`cilbench submit`: a sweep file as a SLURM job array, each of whose tasks does one part of the runs.

A plain batch script, written beside the runs so that it can be read and submitted again. A task is asked to end some
minutes before its time is over, writes a checkpoint, and puts itself back into the queue; the next start goes on.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cilbench.cli.asked import comparisons_of
from cilbench.cli.terminal import say, working
from cilbench.errors import RequestError
from cilbench.options import HowToRun, RunOptions, a_path, spread
from cilbench.sweepfile import HOW, Comparisons

# The array's own number is written out: a task that is submitted again alone does the same part. Only a job that is
# still running asks for another turn: one that is cancelled gets the same signal and stays cancelled.
SCRIPT = """\
#!/bin/bash
{directives}
# Written by cilbench; `sbatch {script}` submits it again: what is done is not run again.
{command} --shard "$SLURM_ARRAY_TASK_ID/{tasks}" &
trap 'kill -TERM $!' TERM
wait $!; code=$?
if [ $code -gt 128 ]; then wait $!; code=$?; fi
task=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
state=$(squeue --noheader --jobs "$task" --format %T)
if [ $code = 143 ] && [[ $state = RUNNING || $state = SIGNALING ]]; then
    scontrol requeue "$task" && exit 0
fi
exit $code
"""


@spread
def submit(
    context: typer.Context,
    sweep_file: Annotated[
        Path, typer.Argument(metavar="SWEEP.TOML", help="Comparisons as a file (docs/scale.md).", parser=a_path)
    ],
    request: RunOptions,
    how: HowToRun,
    slurm: Annotated[bool, typer.Option("--slurm", help="As a SLURM job array.")] = False,
    array: Annotated[str, typer.Option("--array", metavar="N", help="Tasks: each does one part of the runs.")] = "16",
    time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="Limit of a task's turn, e.g. 4h, 90min or 1d12h.")
    ] = None,
    gpus: Annotated[str, typer.Option("--gpus", metavar="N", help="GPUs of a task.")] = "0",
    before: Annotated[
        str, typer.Option("--before", metavar="SECONDS", help="Told to end so long before the limit.")
    ] = "180",
    sbatch: Annotated[
        list[str] | None,
        typer.Option("--sbatch", metavar="OPTION", help="Of sbatch, e.g. --partition=gpu; repeatable."),
    ] = None,
    write_only: Annotated[bool, typer.Option("--write-only", help="Write the script and submit nothing.")] = False,
) -> None:
    """Hand a sweep file to a cluster as tasks that queue again, from a checkpoint, until all is done.

    cilbench submit sweep.toml --slurm --array 16 --time 4h --gpus 1
    """
    if not slurm:
        raise RequestError("submit: say where to: --slurm")
    if how.source is not None or how.shard is not None or how.fresh:
        raise RequestError("submit: --from, --shard and --fresh are of `run` alone")
    numbers = {"--array": array, "--gpus": gpus, "--before": before}
    for option, text in numbers.items():
        if not text.isdecimal():
            raise RequestError(f"{option} {text}: write a whole number")
    asked_for = comparisons_of(context, request, how, sweep_file)
    limit = None if time is None else minutes(time)
    asked = Slurm(int(array), limit, int(gpus), int(before), tuple(sbatch or ()))
    say(handed_over(asked_for, asked, write_only))


@dataclass(frozen=True)
class Slurm:
    """What is asked of SLURM. `seconds_before`: how long before the limit a task is told to end."""

    tasks: int
    minutes: int | None
    gpus: int
    seconds_before: int
    options: Sequence[str]  # of sbatch, as they are

    def directives(self, name: str, logs: Path) -> list[str]:
        """Options of sbatch, in the script's head; those that were given as they are go last, before all others."""
        return [
            f"--job-name={name}",
            f"--array=1-{self.tasks}",
            *([f"--time={self.minutes}"] if self.minutes is not None else []),
            *([f"--gres=gpu:{self.gpus}"] if self.gpus else []),
            f"--signal=B:TERM@{self.seconds_before}",
            "--requeue",
            "--open-mode=append",
            f"--output={logs}/%A_%a.txt",
            f"--chdir={Path.cwd()}",
            *self.options,
        ]


def minutes(text: str) -> int:
    """`4h`, `90min`, `2d`, `1d12h`. Raises RequestError."""
    units = {"d": 1440, "h": 60, "min": 1}
    if not re.fullmatch(r"([0-9]+(d|h|min))+", text):
        raise RequestError(f"--time {text}: write days, hours or minutes, e.g. 4h, 90min or 1d12h")
    found = sum(int(number) * units[unit] for number, unit in re.findall(r"([0-9]+)(d|h|min)", text))
    if not found:
        raise RequestError(f"--time {text}: write a time above 0")
    return found


def handed_over(asked_for: Comparisons, slurm: Slurm, write_only: bool) -> str:
    """Write the script and hand it to sbatch. What sbatch said, or where the script is. Raises RequestError."""
    out = asked_for.how.out
    if not 1 <= slurm.tasks <= 100_000:
        raise RequestError(f"--array {slurm.tasks}: write how many tasks there are to be, from 1 to 100000")
    if slurm.minutes is not None and slurm.seconds_before >= 60 * slurm.minutes:
        raise RequestError(f"--before {slurm.seconds_before}: must be less than --time, {60 * slurm.minutes} seconds")
    if not write_only and shutil.which("sbatch") is None:
        raise RequestError("--slurm: there is no sbatch on this machine; submit where SLURM is, or use --write-only")
    with working("loading"):
        from cilbench.cli.comparisons import asked_in, of_each, store_resolved
        from cilbench.protocol.sweep import check_writable
    of_each(asked_for, asked_in)
    check_writable(out)
    command = shlex.join([sys.executable, "-P", "-m", "cilbench", *arguments(asked_for)])
    logs = out.with_name(f"{out.name}-slurm")
    directives = [f"#SBATCH {_quoted(option)}" for option in slurm.directives(asked_for.name or "cilbench", logs)]
    store_resolved(asked_for)
    logs.mkdir(parents=True, exist_ok=True)
    script = logs / f"{asked_for.stored.stem}.sh"
    script.write_text(
        SCRIPT.format(
            directives="\n".join(directives),
            script=shlex.quote(str(script)),
            command=command,
            tasks=slurm.tasks,
        )
    )
    if write_only:
        return f"written: {script}"
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True)
    if done.returncode:
        raise RequestError(f"--slurm: sbatch refused {script}: {done.stderr.strip() or done.stdout.strip()}")
    return f"{done.stdout.strip()}: {slurm.tasks} tasks of {script}; what they say goes to {logs}"


def arguments(asked_for: Comparisons) -> list[str]:
    """`run` of the resolved file, which a later change of the sweep file does not reach."""
    usual = HowToRun()
    words = ["run", str(asked_for.stored)]
    for key, field in HOW.items():
        value = getattr(asked_for.how, field)
        if value is True:
            words.append(f"--{key}")
        elif value != getattr(usual, field):
            words += [f"--{key}", str(value)]
    data_dirs = {request.data_dir for request in asked_for.requests.values()}
    if len(data_dirs) > 1:
        raise RequestError("data-dir: all comparisons that are submitted must have one")
    return words + [word for folder in data_dirs if folder is not None for word in ("--data-dir", str(folder))]


def _quoted(option: str) -> str:
    """sbatch reads its options as a shell does, but knows double quotes alone to be safe."""
    if '"' in option or "\n" in option:
        raise RequestError(f"sbatch option {option!r}: no double quotes and no line breaks")
    return f'"{option}"' if re.search(r"[\s#']", option) else option

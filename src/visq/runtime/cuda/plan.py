"""Turns a program into launches of kernels, and places its tensors in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from visq.integer.program import Program
from visq.native.memory import Arena
from visq.runtime.bundle import Bundle
from visq.runtime.cpu.schedule import scans_together
from visq.runtime.cuda.bodies import Body
from visq.runtime.cuda.phases import Launch, launches_of
from visq.runtime.cuda.source import IMAGES, Source
from visq.runtime.cuda.steps import Step, steps_of
from visq.runtime.cuda.text import Place
from visq.runtime.operation_forms import form_of, reason

#: Tensors begin at a multiple of this many bytes.
ALIGN = 256


@dataclass
class Plan:
    """The launches of a program in order, and where its tensors lie.

    Attributes:
        in_float: for each operation that runs in float32, the reason.
        steps: how many steps the launches run.
        offsets: byte at which a tensor of one image starts, by the name of its place. With B images it starts at B
            times that.
        bytes_an_image: memory of all tensors for each image.
    """

    launches: list[Launch] = field(default_factory=list)
    in_float: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    bytes_an_image: int = 0


def make_plan(program: Program, bundle: Bundle, separate_memory: bool = False) -> Plan:
    """Returns the plan of a program.

    Arguments:
        separate_memory: gives every tensor its own memory.

    Raises:
        VisqError: parameters do not fit, or the engine lacks something; the message names the operation.
    """
    plan = Plan()
    image = Place(IMAGES, program.channels, program.height * program.width, coded=False)
    for name, decl in program.tensors.items():
        plan.places[name] = Place(f"tensor {name}", decl.rows, decl.width, decl.site is not None)
    plan.places[IMAGES] = image
    steps: list[Step] = []
    for index, operation in enumerate(scans_together(program.operations)):
        form = form_of(program, operation, bundle)
        if (why := reason(form)) is not None:
            plan.in_float[operation.name] = why
        body = Body(program, operation, bundle, plan.places, index)
        steps += steps_of(Source(body, form, image, (program.height, program.width)))
        bundle.forget()  # the steps have copies
    plan.steps, plan.launches = len(steps), launches_of(steps)
    _place_tensors(plan, plan.places[program.output], separate_memory)
    return plan


def _place_tensors(plan: Plan, output: Place, separate_memory: bool) -> None:
    """Gives every place memory; a place's memory is free for others after the last launch that uses it."""
    arena = Arena(ALIGN)
    used = [[x for x in launch.arguments if isinstance(x, Place)] for launch in plan.launches]
    last = {place.name: index for index, places in enumerate(used) for place in places}
    last[output.name] = len(used)
    plan.offsets[IMAGES] = arena.take(plan.places[IMAGES].bytes_an_image)
    for index, places in enumerate(used):
        for place in places:
            if place.name not in plan.offsets:
                plan.offsets[place.name] = arena.take(place.bytes_an_image)
        for name in {place.name for place in places if last[place.name] == index and not separate_memory}:
            arena.free(plan.offsets[name])
    plan.bytes_an_image = arena.size

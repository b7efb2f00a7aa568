"""The schedulers of the installed diffusers that sample SDXL, found by looking, and why the others do not."""

import inspect

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .helpers import SDXL_BETAS


def parameters(scheduler_class) -> set[str]:
    return set(inspect.signature(scheduler_class.__init__).parameters)


INSTALLED = {
    member.__name__: member
    for member in (getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler"))
    if inspect.isclass(member) and issubclass(member, SchedulerMixin)
}
# SDXL's noise schedule is given by betas; what does not take them (EDM, consistency models, ...) cannot sample it
TAKE_BETAS = {name for name, member in INSTALLED.items() if set(SDXL_BETAS) <= parameters(member)}
# with the error that upstream's image-to-image ends in, None where it runs with a schedule that rises
LEFT_OUT = {
    # its step takes the last prediction of the clean sample, which SDXL's loop does not keep
    "CogVideoXDPMScheduler": TypeError,
    # goes from an image to noise, and has no add_noise
    "DDIMInverseScheduler": AttributeError,
    # goes from an image to noise
    "DPMSolverMultistepInverseScheduler": None,
    # repaints, and refuses add_noise
    "RePaintScheduler": NotImplementedError,
}
SDXL = {name: INSTALLED[name] for name in sorted(TAKE_BETAS - set(LEFT_OUT))}
OPTIONS = {"DPMSolverSDEScheduler": {"noise_sampler_seed": 0}, "PNDMScheduler": {"skip_prk_steps": True}}

FLOW_LEFT_OUT = {
    "DPMSolverMultistepInverseScheduler": "goes from an image to noise",
    "HeliosDMDScheduler": "runs a pyramid of sizes, a schedule for each",
    "HeliosScheduler": "runs a pyramid of sizes, a schedule for each",
}
CAN_FLOW = {
    name
    for name, member in INSTALLED.items()
    if hasattr(member, "scale_noise") or "use_flow_sigmas" in parameters(member)
}
FLOW = sorted(CAN_FLOW - set(FLOW_LEFT_OUT))

"""The kernel: typed pykka actors on the caller's event loop."""

from callboard.kernel.actor import Actor
from callboard.kernel.handlers import ActorDefinitionError, handles
from callboard.kernel.ref import Ref
from callboard.kernel.replies import LoopFuture
from callboard.kernel.system import ActorFailure, ActorRestart, ActorSystem, ChildSpec, SystemHealth

__all__ = [
    "Actor",
    "Ref",
    "handles",
    "LoopFuture",
    "ActorSystem",
    "ChildSpec",
    "ActorRestart",
    "ActorFailure",
    "SystemHealth",
    "ActorDefinitionError",
]

"""Generation: sampling with a state that is carried, and that state in a file."""

from bdh_jax.generation.sampling import GenerationState, Sampling, generate, prefill
from bdh_jax.generation.state_files import StateError, load_state, save_state

__all__ = ["GenerationState", "Sampling", "StateError", "generate", "load_state", "prefill", "save_state"]

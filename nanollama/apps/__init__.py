"""Applications: scripts that put the rooms of the library together."""

from nanollama.cluster.threads import let_threads_sleep

let_threads_sleep()  # here, because an app's own imports bring torch, which reads the environment once

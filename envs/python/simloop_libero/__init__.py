"""The LIBERO side of the simulator bridge.

| module | what it owns |
|---|---|
| `wire` | frames on the socket, the image area |
| `server` | the operations of the protocol |
| `bootstrap` | importing LIBERO without prompts, network, torch or a config file |
| `init_states` | reading `.pruned_init` files without unpickling code |
| `task` | one task: build, reset, step, observe |
| `scenes` | fixture poses: which random numbers a reset draws |
| `soft_reset` | resets without rebuilding the model, bit for bit equal to those that do |
| `privileged` | the true state for scripted experts |
| `preflight` | whether every initial state holds what its task presumes; the fingerprint |
"""

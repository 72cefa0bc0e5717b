"""Operations beyond the environment's own: `call {name, args}`. All but `suites` end a running episode."""

import hashlib

from . import task as tasks


def suites(_server, _args):
    """Every suite with its tasks in the benchmark's order."""
    listing = {}
    for suite in tasks.SUITES:
        benchmark = tasks.benchmark(suite)
        listing[suite] = [
            {"task": f"{suite}/{i}", "name": benchmark.get_task(i).name, "instruction": benchmark.get_task(i).language}
            for i in range(benchmark.get_num_tasks())
        ]
    return listing


def state(server, _args):
    """The simulator's flattened state, little-endian f64: what `reset` takes as an explicit state."""
    return {"state": server.running().state().astype("<f8").tobytes()}


def preflight(server, args):
    """Checks initial states: `{task, states: [index] or nil}`; see `preflight`."""
    from .preflight import check_task

    return check_task(server.switch_to(args["task"]), args.get("states"))


def fingerprint(server, args):
    """What a first observation depends on: `{task}` -> versions, renderer, hash of initial state 0's observation."""
    task = server.switch_to(args["task"])
    observation, _ = task.reset(0, 0, None)
    digest = hashlib.sha256(task.proprio(observation).tobytes())
    for name, image in sorted(task.images(observation).items()):
        digest.update(name.encode())
        digest.update(image.tobytes())
    return {
        "versions": server.versions,
        "renderer": gl_strings(task),
        "first_observation": digest.hexdigest(),
        "state": hashlib.sha256(task.state().tobytes()).hexdigest(),
    }


def gl_strings(task):
    """GL_VENDOR, GL_RENDERER and GL_VERSION of the live context, empty without one."""
    context = task.env.sim._render_context_offscreen
    if context is None:
        return {}
    from OpenGL import GL

    context.gl_ctx.make_current()
    return {
        name: GL.glGetString(key).decode("utf-8", "replace")
        for name, key in (("vendor", GL.GL_VENDOR), ("renderer", GL.GL_RENDERER), ("version", GL.GL_VERSION))
    }


TABLE = {"suites": suites, "state": state, "preflight": preflight, "fingerprint": fingerprint}

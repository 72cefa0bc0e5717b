"""The true state for scripted experts: poses of everything that can be touched, and its shape as boxes.

Metres, world frame, quaternions xyzw. Read from the simulator after the step; unlike proprioception, which robosuite
samples 2 ms before the step ends. Every vector holds everything, so that a label is a function of one step alone.

| field | numbers | what |
|---|---|---|
| `eef_pos`, `eef_quat_xyzw` | 3, 4 | grip site; orientation of the hand |
| `gripper_qpos` | 2 | finger joints, about +0.04 and -0.04 open |
| `<body>_pos`, `<body>_quat_xyzw` | 3, 4 | every body with a collision shape, without robot and planes |
| `<site>_pos`, `<site>_quat_xyzw` | 3, 4 | regions that the goal names |
| `<body>_boxes` | 10 k | bounding box per collision geom in the body's frame: centre 3, quaternion 4, half extents 3 |
| `<site>_half_size` | 3 | half extents of those regions |

A body goes by its MuJoCo name; the root body of a movable object by the object's name (`akita_black_bowl_1`).
"""

import mujoco
import numpy as np

ROBOT_PREFIXES = ("robot0_", "gripper0_", "mount0_")
GRIP_SITE = "gripper0_grip_site"
HAND_BODY = "robot0_right_hand"
XYZW = [1, 2, 3, 0]  # from MuJoCo's wxyz


class PrivilegedState:
    """Reads one environment; `rebind` after each reset, since a hard one replaces the model."""

    def __init__(self, env):
        self._env = env
        self._model = None

    def rebind(self):
        """Finds the ids again and measures the boxes, if the model is a new one."""
        env = self._env
        model = env.sim.model._model
        self._data = env.sim.data._data
        if model is self._model:
            return
        self._model = model
        self._hand_site = _id(model, mujoco.mjtObj.mjOBJ_SITE, GRIP_SITE)
        self._hand_body = _id(model, mujoco.mjtObj.mjOBJ_BODY, HAND_BODY)
        self._fingers = list(env.robots[0]._ref_gripper_joint_pos_indexes)

        object_of = {thing.root_body: name for name, thing in env.objects_dict.items()}
        collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        collides &= model.geom_type != int(mujoco.mjtGeom.mjGEOM_PLANE)
        bodies, names, boxes = [], [], []
        for body in range(1, model.nbody):
            name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY, body)
            first = model.body_geomadr[body]
            geoms = [g for g in range(first, first + model.body_geomnum[body]) if collides[g]] if first >= 0 else []
            movable = name in object_of
            if name is None or name.startswith(ROBOT_PREFIXES) or not (geoms or movable):
                continue
            bodies.append(body)
            names.append(object_of.get(name, name))
            boxes.append(np.array([_box(model, g) for g in geoms]).ravel())
        self._bodies = np.array(bodies)

        sites = sorted({a for goal in env.parsed_problem["goal_state"] for a in goal[1:] if a in env.object_sites_dict})
        self._sites = np.array([_id(model, mujoco.mjtObj.mjOBJ_SITE, name) for name in sites], dtype=int)
        halves = [model.site_size[site] for site in self._sites]

        self._static = np.concatenate([*boxes, *halves, np.zeros(0)])
        self._layout = [["eef_pos", 3], ["eef_quat_xyzw", 4], ["gripper_qpos", 2]]
        for name in (*names, *sites):
            self._layout += [[f"{name}_pos", 3], [f"{name}_quat_xyzw", 4]]
        self._layout += [[f"{name}_boxes", len(box)] for name, box in zip(names, boxes, strict=True)]
        self._layout += [[f"{name}_half_size", 3] for name in sites]

    def read(self):
        """Values `[n]` f64 and their layout `[[name, length], ...]`."""
        data = self._data
        poses = np.empty((len(self._bodies), 7))
        poses[:, :3] = data.xpos[self._bodies]
        poses[:, 3:] = data.xquat[self._bodies][:, XYZW]
        regions = np.empty((len(self._sites), 7))
        for row, site in zip(regions, self._sites, strict=True):
            row[:3] = data.site_xpos[site]
            row[3:] = _quat_xyzw_from_matrix(data.site_xmat[site])
        values = np.concatenate(
            (
                data.site_xpos[self._hand_site],
                data.xquat[self._hand_body][XYZW],
                data.qpos[self._fingers],
                poses.ravel(),
                regions.ravel(),
                self._static,
            )
        )
        return values, self._layout


def _id(model, kind, name):
    found = mujoco.mj_name2id(model, kind, name)
    if found < 0:
        raise KeyError(f"the model has no `{name}`")
    return found


def _box(model, geom):
    quat = model.geom_quat[geom]
    centre, half = model.geom_aabb[geom][:3], model.geom_aabb[geom][3:]
    shift = np.empty(3)
    mujoco.mju_rotVecQuat(shift, np.ascontiguousarray(centre), np.ascontiguousarray(quat))
    return np.concatenate((model.geom_pos[geom] + shift, quat[XYZW], half))


def _quat_xyzw_from_matrix(matrix):
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(matrix).ravel())
    return quat[XYZW]

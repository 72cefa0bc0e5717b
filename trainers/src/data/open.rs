//! Any data set by its path.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use simloop_envs::pusht::PushtObs;

use super::hdf5::{self, Hdf5Options};
use super::lerobot::{Lerobot, LerobotOptions};
use super::{
    DataError, DemoSource, ManifestSource, PushtZarr, RldsOptions, RldsSource, manifest,
    pusht_zarr, rlds,
};

/// What a reader may be told; each reads its own part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenOptions {
    /// What PushT's proprio holds, and whether there are images.
    pub pusht_obs: PushtObs,
    /// Split and standardisation of an RLDS data set.
    pub rlds: RldsOptions,
    /// Keys of a LeRobot data set.
    pub lerobot: LerobotOptions,
    /// Keys, alignment and filters of an HDF5 file.
    pub hdf5: Hdf5Options,
}

type Open = fn(&Path, &OpenOptions) -> Result<Arc<dyn DemoSource>, DataError>;

/// A format and the files by which it is known.
struct Format {
    name: &'static str,
    files: &'static str,
    is: fn(&Path) -> bool,
    open: Open,
}

const FORMATS: &[Format] = &[
    Format {
        name: "PushT zarr",
        files: "meta/episode_ends/.zarray",
        is: |path| pusht_zarr::recognise(path).is_some(),
        open: |path, options| Ok(Arc::new(PushtZarr::open(path, options.pusht_obs)?)),
    },
    Format {
        name: "RLDS",
        files: "dataset_info.json and features.json, here or in the only version folder",
        is: |path| rlds::locate(path).is_some(),
        open: |path, options| Ok(Arc::new(RldsSource::open(path, &options.rlds)?)),
    },
    Format {
        name: "LeRobot",
        files: "meta/info.json",
        is: |path| path.join("meta/info.json").is_file(),
        open: |path, options| Ok(Arc::new(Lerobot::open(path, &options.lerobot)?)),
    },
    Format {
        name: "HDF5",
        files: "a file .hdf5 or .h5 of robomimic, LIBERO, robosuite or D4RL",
        is: hdf5::recognise,
        open: |path, options| hdf5::open(path, &options.hdf5),
    },
    Format {
        name: "manifest",
        files: "manifest.jsonl",
        is: manifest::recognise,
        open: |path, _| Ok(Arc::new(ManifestSource::open(path)?)),
    },
];

/// Opens a data set of any format, which is known by its files.
///
/// # Errors
/// [`DataError::Unsupported`] naming what was looked for; the reader's own.
pub fn open_source(path: &Path, options: &OpenOptions) -> Result<Arc<dyn DemoSource>, DataError> {
    if !path.exists() {
        return Err(DataError::unsupported(format!(
            "open `{}`: there is no such path",
            path.display()
        )));
    }
    if let Some(format) = FORMATS.iter().find(|f| (f.is)(path)) {
        return (format.open)(path, options);
    }
    let looked: Vec<String> = FORMATS.iter().map(|f| format!("{} ({})", f.files, f.name)).collect();
    Err(DataError::unsupported(format!(
        "open `{}`: it is no data set that is known here; looked for {}",
        path.display(),
        looked.join("; ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_folder_names_what_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let refused =
            |path: &Path| open_source(path, &OpenOptions::default()).err().unwrap().to_string();
        let error = refused(folder.path());
        for format in FORMATS {
            assert!(error.contains(format.name), "{error}");
        }
        assert!(refused(&folder.path().join("nowhere")).contains("no such path"));
    }
}

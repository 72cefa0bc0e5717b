//! Parts that begin with published weights.

use std::path::Path;

use tch::Device;

use super::VlaPolicy;
use crate::encoders::VisionConfig;
use crate::vision::siglip::PATCHES;
use crate::vision::{SiglipConfig, SiglipVision};
use crate::{PolicyError, hf};

impl VlaPolicy {
    /// Begins every SigLIP tower of `policy.vision` with the weights of a folder as Hugging Face writes it (`config.json`,
    /// `model.safetensors`), of the tower alone or of the two-tower model. Adapters stay as they are.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for a policy without such a tower and for one of another size, naming both;
    /// [`PolicyError::File`] or [`PolicyError::Refused`] for the folder.
    pub fn begin_vision(&self, folder: &Path) -> Result<(), PolicyError> {
        let fail = |detail: String| PolicyError::Config {
            detail: format!("begin with the tower of `{}`: {detail}", folder.display()),
        };
        let VisionConfig::Siglip(config) = &self.config.vision else {
            return Err(fail("`policy.vision` is no `siglip`".to_owned()));
        };
        let tower = config.tower();
        let found = SiglipConfig {
            vision_use_head: tower.vision_use_head,
            ..SiglipConfig::read(&folder.join("config.json"))?
        };
        if found != tower {
            return Err(fail(format!("it is {found:?}, `policy.vision.tower` is {tower:?}")));
        }
        let weights = hf::read_weights(folder)?;
        let plain = SiglipVision::from_weights(tower, &weights, Device::Cpu)?;
        let names = self.params.names();
        let places = names.iter().filter_map(|name| name.strip_suffix(PATCHES));
        let _guard = tch::no_grad_guard();
        for place in places.filter(|place| place.starts_with("vision.")) {
            for (name, value) in plain.params().all() {
                let Some(mut tensor) = self.params.get(&format!("{place}{name}")) else {
                    return Err(fail(format!("the policy has no `{place}{name}`")));
                };
                tensor.copy_(&value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use simloop_envs::ImageSpace;

    use super::*;
    use crate::encoders::siglip::{SiglipEncoderConfig, SiglipTraining};
    use crate::nn::Params;
    use crate::nn::lora::{LoraConfig, Targets};
    use crate::normalize::Stats;
    use crate::vla::{Normalizers, PolicyIo, VlaConfig};
    use crate::{ImitationModel as _, safetensors_io};

    const TOWER: &str = r#"{"hidden_size":8,"intermediate_size":12,"num_hidden_layers":1,"num_attention_heads":2,
        "image_size":8,"patch_size":4}"#;

    fn policy(vision: VisionConfig) -> VlaPolicy {
        let size = ImageSpace { height: 12, width: 12 };
        let io = PolicyIo {
            cameras: ["a", "b"].map(|name| (name.to_owned(), size)).into(),
            proprio: vec!["x".to_owned()],
            action: vec!["x".to_owned()],
            convention: None,
            control_hz: None,
        };
        let config = VlaConfig { vision, ..VlaConfig::default() };
        let stats = Stats::of(ndarray::arr2(&[[0.0], [1.0]]).view()).unwrap();
        let normalizers = Normalizers::fit(&config, stats.clone(), stats).unwrap();
        VlaPolicy::new(config, io, normalizers, Device::Cpu, 0).unwrap()
    }

    #[test]
    fn every_camera_begins_with_the_folders_weights_and_other_sizes_are_named() {
        let tower: SiglipConfig = serde_json::from_str(TOWER).unwrap();
        let donor = Params::new(Device::Cpu, 7);
        SiglipVision::new(&donor.root(), tower.clone()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let hub: BTreeMap<_, _> =
            donor.snapshot().into_iter().map(|(n, t)| (format!("vision_model.{n}"), t)).collect();
        safetensors_io::save(&folder.path().join("model.safetensors"), &hub).unwrap();
        let write = |text: &str| std::fs::write(folder.path().join("config.json"), text).unwrap();
        write(&format!(r#"{{"vision_config":{TOWER}}}"#));

        let adapters = LoraConfig::new(2, 4.0, Targets::AllLinear);
        for train in [SiglipTraining::All, SiglipTraining::Lora { adapters }] {
            let config = SiglipEncoderConfig { tower: tower.clone(), train, ..Default::default() };
            let policy = policy(VisionConfig::Siglip(config));
            let name = "encoder.layers.0.mlp.fc1.weight";
            let of =
                |camera: &str| policy.params().get(&format!("vision.{camera}.{name}")).unwrap();
            let expected = donor.get(name).unwrap();
            assert!(!of("a").equal(&expected));
            policy.begin_vision(folder.path()).unwrap();
            assert!(of("a").equal(&expected) && of("b").equal(&expected));
        }

        write(&TOWER.replace("\"patch_size\":4", "\"patch_size\":2"));
        let config = SiglipEncoderConfig { tower, ..SiglipEncoderConfig::default() };
        let error = policy(VisionConfig::Siglip(config)).begin_vision(folder.path());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("patch_size: 2") && error.contains("patch_size: 4"), "{error}");
        let error = policy(VisionConfig::None).begin_vision(folder.path()).unwrap_err();
        assert!(error.to_string().contains("no `siglip`"), "{error}");
    }
}

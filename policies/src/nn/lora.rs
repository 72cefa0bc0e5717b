//! Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on any linear layer, in peft's names and files.
//!
//! `y = x Wᵀ + b + s · B A dropout(x)`, s = alpha / r (alpha / √r with rank stabilisation, Kalajdzievski 2023). Adapters
//! appear when [`Params::set_lora`] is called before the model is built: each [`Linear`](super::Linear) whose name the
//! rule matches gets `lora_A.weight [r, in]` and `lora_B.weight [out, r]` beside its own weight. B begins at zero, so
//! the model begins unchanged.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::runtime::RuntimeRef;
use super::{Init, Params, Scope};
use crate::{PolicyError, hf, safetensors_io};

/// What peft puts before every name.
const PEFT_PREFIX: &str = "base_model.model.";

/// Which linear layers are adapted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Targets {
    /// All but the output layer `lm_head` (peft: `"all-linear"`).
    AllLinear,
    /// Those whose name is one of these or ends in a dot and one of these.
    Names(Vec<String>),
}

/// The shape of all adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub r: i64,
    /// Scale, before it is divided by the rank.
    pub alpha: f64,
    /// Probability that an input is dropped while training; needs [`Params::set_dropout`].
    #[serde(default)]
    pub dropout: f64,
    /// Which layers.
    pub targets: Targets,
    /// Layers left out although `targets` matches, same rule.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Divide by √r instead of r.
    #[serde(default)]
    pub rank_stabilised: bool,
    /// Begin A with a normal of deviation 1/r instead of PyTorch's uniform (peft: `init_lora_weights = "gaussian"`).
    #[serde(default)]
    pub gaussian: bool,
    /// Other ranks for some layers.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, i64>,
    /// Other scales for some layers.
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
}

/// Whether `name` is `pattern` or ends in a dot and `pattern`.
fn matches(name: &str, pattern: &str) -> bool {
    name.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl LoraConfig {
    /// No dropout, no exceptions.
    pub fn new(r: i64, alpha: f64, targets: Targets) -> Self {
        Self {
            r,
            alpha,
            dropout: 0.0,
            targets,
            exclude: Vec::new(),
            rank_stabilised: false,
            gaussian: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let fail = |detail: String| Err(PolicyError::Config { detail: format!("lora: {detail}") });
        if let Some(r) = std::iter::once(&self.r)
            .chain(self.rank_pattern.values())
            .find(|r| !(1..=65_536).contains(*r))
        {
            return fail(format!("r = {r} is not within 1 and 65536"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return fail(format!("dropout = {} is not within 0 and 1", self.dropout));
        }
        if !self.alpha.is_finite() || self.alpha_pattern.values().any(|a| !a.is_finite()) {
            return fail("alpha is not finite".to_owned());
        }
        if matches!(&self.targets, Targets::Names(names) if names.is_empty()) {
            return fail("it targets no layer".to_owned());
        }
        Ok(())
    }

    /// Rank and factor for the linear layer `name`; `None` if it is not adapted.
    fn rank_and_scale(&self, name: &str) -> Option<(i64, f64)> {
        let chosen = match &self.targets {
            Targets::AllLinear => !matches(name, "lm_head"),
            Targets::Names(names) => names.iter().any(|pattern| matches(name, pattern)),
        };
        if !chosen || self.exclude.iter().any(|pattern| matches(name, pattern)) {
            return None;
        }
        let r =
            self.rank_pattern.iter().find(|(p, _)| matches(name, p)).map_or(self.r, |(_, r)| *r);
        let alpha = self
            .alpha_pattern
            .iter()
            .find(|(p, _)| matches(name, p))
            .map_or(self.alpha, |(_, a)| *a);
        let divisor = if self.rank_stabilised { (r as f64).sqrt() } else { r as f64 };
        Some((r, alpha / divisor))
    }

    /// Reads peft's `adapter_config.json`.
    ///
    /// # Errors
    /// [`PolicyError::File`] for a file that is not there or no JSON, [`PolicyError::Config`] for settings that change
    /// the computation and that we do not have (DoRA, trained biases, layers chosen by index, …).
    pub fn from_peft(path: &Path) -> Result<(Self, Option<String>), PolicyError> {
        let raw: PeftConfig = hf::read_json(path)?;
        raw.understand().map_err(|detail| PolicyError::Config {
            detail: format!("read `{}`: {detail}", path.display()),
        })
    }
}

/// The fields of `adapter_config.json` that we read; those that we refuse are checked by name.
#[derive(Deserialize)]
struct PeftConfig {
    peft_type: Option<String>,
    base_model_name_or_path: Option<String>,
    // Class defaults of peft's LoraConfig.
    #[serde(default = "eight")]
    r: i64,
    #[serde(default = "eight_f64")]
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Option<serde_json::Value>,
    exclude_modules: Option<Vec<String>>,
    #[serde(default)]
    use_rslora: bool,
    init_lora_weights: Option<serde_json::Value>,
    #[serde(default)]
    rank_pattern: Option<BTreeMap<String, i64>>,
    #[serde(default)]
    alpha_pattern: Option<BTreeMap<String, f64>>,
    bias: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

fn eight() -> i64 {
    8
}
fn eight_f64() -> f64 {
    8.0
}

impl PeftConfig {
    fn understand(self) -> Result<(LoraConfig, Option<String>), String> {
        if let Some(kind) = self.peft_type.filter(|kind| kind != "LORA") {
            return Err(format!("adapters of type `{kind}` are not supported, only LORA"));
        }
        if let Some(bias) = self.bias.filter(|bias| bias != "none") {
            return Err(format!("bias = \"{bias}\" is not supported, only \"none\""));
        }
        for field in [
            "use_dora",
            "use_qalora",
            "use_bdlora",
            "lora_bias",
            "fan_in_fan_out",
            "layers_to_transform",
            "layers_pattern",
            "layer_replication",
            "modules_to_save",
            "target_parameters",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "arrow_config",
            "velora_config",
            "monteclora_config",
            "kasa_config",
        ] {
            let set = match self.rest.get(field) {
                None | Some(serde_json::Value::Null | serde_json::Value::Bool(false)) => false,
                Some(serde_json::Value::Array(items)) => !items.is_empty(),
                Some(serde_json::Value::Object(items)) => !items.is_empty(),
                Some(_) => true,
            };
            if set {
                return Err(format!("`{field}` is set and not supported"));
            }
        }
        let plain = |name: &String| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        };
        let targets = match self.target_modules {
            Some(serde_json::Value::String(name)) if name == "all-linear" => Targets::AllLinear,
            Some(serde_json::Value::Array(items)) => {
                let names =
                    items.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
                Targets::Names(
                    names
                        .filter(|n| n.iter().all(plain))
                        .ok_or("target_modules is no list of names")?,
                )
            }
            other => {
                return Err(format!(
                    "target_modules = {other:?} is neither \"all-linear\" nor a list of names"
                ));
            }
        };
        let (rank_pattern, alpha_pattern) =
            (self.rank_pattern.unwrap_or_default(), self.alpha_pattern.unwrap_or_default());
        if !rank_pattern.keys().chain(alpha_pattern.keys()).all(plain) {
            return Err("rank_pattern or alpha_pattern holds more than a name".to_owned());
        }
        let config = LoraConfig {
            r: self.r,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            targets,
            exclude: self.exclude_modules.unwrap_or_default(),
            rank_stabilised: self.use_rslora,
            gaussian: self.init_lora_weights.as_ref().and_then(|v| v.as_str()) == Some("gaussian"),
            rank_pattern,
            alpha_pattern,
        };
        config.validate().map_err(|e| e.to_string())?;
        Ok((config, self.base_model_name_or_path))
    }
}

/// One layer's adapter.
#[derive(Debug)]
pub(crate) struct Lora {
    a: Tensor,
    b: Tensor,
    scale: f64,
    dropout: f64,
}

impl Lora {
    /// The adapter of the linear layer at `scope`, if the rule matches.
    pub(crate) fn new(scope: &Scope, inputs: i64, outputs: i64) -> Option<Self> {
        let config = scope.params().lora()?;
        let (r, scale) = config.rank_and_scale(scope.path())?;
        let init = if config.gaussian { Init::Normal { std: 1.0 / r as f64 } } else { Init::FanIn };
        let a = scope.sub("lora_A").param("weight", &[r, inputs], init);
        let b = scope.sub("lora_B").param("weight", &[outputs, r], Init::Zeros);
        scope.params().note_adapter(scope.path(), scale);
        Some(Self { a, b, scale, dropout: config.dropout })
    }

    /// What is added to the layer's output; `compute` is what the layer computes in.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        compute: Option<Kind>,
        runtime: &RuntimeRef,
    ) -> Option<Tensor> {
        if runtime.merged.get() {
            return None;
        }
        let kind = compute.unwrap_or_else(|| x.kind());
        let mut x = x.to_kind(kind);
        if self.dropout > 0.0
            && let Some(noise) = runtime.dropout.borrow_mut().as_mut()
        {
            let keep = noise.uniform(&x.size(), x.device()).ge(self.dropout).to_kind(x.kind());
            x = x * keep / (1.0 - self.dropout);
        }
        let low = x.linear(&self.a.to_kind(kind), None::<&Tensor>);
        Some(low.linear(&self.b.to_kind(kind), None::<&Tensor>) * self.scale)
    }
}

/// Whether the parameter `name` belongs to an adapter; a rule for [`Params::set_trainable`].
pub fn is_adapter(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

impl Params {
    /// Weight names of adapted layers with what their adapter adds, `s · B A`.
    fn deltas(&self) -> Vec<(String, Tensor)> {
        self.adapted()
            .iter()
            .filter_map(|(layer, scale)| {
                let a = self.get(&format!("{layer}.lora_A.weight"))?;
                let b = self.get(&format!("{layer}.lora_B.weight"))?;
                Some((format!("{layer}.weight"), b.matmul(&a) * *scale))
            })
            .collect()
    }

    /// Copies of all tensors with the adapters folded in and left out: the plain model, to save or to hand on.
    pub fn merged(&self) -> BTreeMap<String, Tensor> {
        let _guard = tch::no_grad_guard();
        let mut tensors = self.snapshot();
        if !self.runtime().merged.get() {
            for (name, delta) in self.deltas() {
                if let Some(weight) = tensors.get_mut(&name) {
                    *weight += delta;
                }
            }
        }
        tensors.retain(|name, _| !is_adapter(name));
        tensors
    }

    /// Folds the adapters into the weights in place, for faster inference. Returns what [`Params::unmerge`] needs:
    /// subtraction would not give the old bits back.
    pub fn merge(&self) -> BTreeMap<String, Tensor> {
        let _guard = tch::no_grad_guard();
        let mut before = BTreeMap::new();
        if self.runtime().merged.replace(true) {
            return before;
        }
        for (name, delta) in self.deltas() {
            if let Some(mut weight) = self.get(&name) {
                before.insert(name, weight.detach().copy());
                weight += delta;
            }
        }
        before
    }

    /// Puts back the weights that [`Params::merge`] returned.
    pub fn unmerge(&self, before: &BTreeMap<String, Tensor>) {
        let _guard = tch::no_grad_guard();
        for (name, value) in before {
            if let Some(mut weight) = self.get(name) {
                weight.copy_(value);
            }
        }
        self.runtime().merged.set(false);
    }

    /// Copies of the adapters' tensors under peft's names.
    pub fn adapters(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = self.snapshot();
        tensors.retain(|name, _| is_adapter(name));
        tensors.into_iter().map(|(name, t)| (format!("{PEFT_PREFIX}{name}"), t)).collect()
    }

    /// Overwrites the adapters by tensors under peft's names.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the first tensor that is missing, left over, or of another shape.
    pub fn load_adapters(&self, values: &BTreeMap<String, Tensor>) -> Result<(), PolicyError> {
        let mut all = self.snapshot();
        all.retain(|name, _| !is_adapter(name));
        for (name, value) in values {
            let name = name.strip_prefix(PEFT_PREFIX).unwrap_or(name);
            // Adapters saved by `torch.save` of a live model carry their name, "default".
            let name = name.replace(".default.weight", ".weight");
            if !is_adapter(&name) {
                return Err(PolicyError::Config {
                    detail: format!("load adapters: `{name}` is no adapter of a linear layer"),
                });
            }
            all.insert(name, value.shallow_clone());
        }
        self.load(&all)
    }
}

/// Writes `adapter_model.safetensors` and `adapter_config.json` into `folder`, as peft does.
///
/// # Errors
/// [`PolicyError::File`] for a folder that cannot be written, [`PolicyError::Config`] for a model without adapters.
pub fn save_peft(folder: &Path, params: &Params, base_model: &str) -> Result<(), PolicyError> {
    let config = params.lora().ok_or_else(|| PolicyError::Config {
        detail: "save adapters: the model was built without".to_owned(),
    })?;
    safetensors_io::save(&folder.join("adapter_model.safetensors"), &params.adapters())?;
    let targets = match &config.targets {
        Targets::AllLinear => serde_json::json!("all-linear"),
        Targets::Names(names) => serde_json::json!(names),
    };
    let json = serde_json::json!({
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "exclude_modules": (!config.exclude.is_empty()).then_some(&config.exclude),
        "use_rslora": config.rank_stabilised,
        "init_lora_weights": if config.gaussian { serde_json::json!("gaussian") } else { serde_json::json!(true) },
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "bias": "none",
        "inference_mode": true,
    });
    let path = folder.join("adapter_config.json");
    std::fs::write(&path, format!("{json:#}\n"))
        .map_err(|e| PolicyError::File { path, detail: e.to_string() })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::NoiseStream;
    use crate::nn::{Activation, Linear, Mlp};

    fn adapted(config: LoraConfig) -> (Params, Mlp) {
        let params = Params::new(Device::Cpu, 0);
        params.set_lora(Some(config)).unwrap();
        let mlp = Mlp::new(&params.root().sub("mlp"), &[4, 6, 3], Activation::Relu);
        (params, mlp)
    }

    fn perturb(params: &Params) {
        let _guard = tch::no_grad_guard();
        for (name, tensor) in params.all() {
            if name.ends_with("lora_B.weight") {
                tensor
                    .shallow_clone()
                    .copy_(&NoiseStream::new(9).normal(&tensor.size(), Device::Cpu));
            }
        }
    }

    #[test]
    fn a_new_adapter_changes_nothing_and_alone_learns() {
        let plain = Params::new(Device::Cpu, 0);
        let reference = Mlp::new(&plain.root().sub("mlp"), &[4, 6, 3], Activation::Relu);
        let (params, mlp) = adapted(LoraConfig::new(2, 4.0, Targets::AllLinear));
        let x = NoiseStream::new(0).normal(&[5, 4], Device::Cpu);
        assert!(mlp.forward(&x).equal(&reference.forward(&x)));
        params.set_trainable(is_adapter);
        assert_eq!(params.trainable().len(), 4);
        mlp.forward(&x).sum(None::<Kind>).backward();
        assert!(!params.get("mlp.0.weight").unwrap().grad().defined());
        assert!(params.get("mlp.1.lora_B.weight").unwrap().grad().defined());
    }

    #[test]
    fn a_layer_in_bf16_keeps_its_adapter() {
        let params = Params::new(Device::Cpu, 0);
        params.set_lora(Some(LoraConfig::new(2, 4.0, Targets::AllLinear))).unwrap();
        let exact = Linear::new(&params.root().sub("fc"), 4, 3);
        let again = Params::new(Device::Cpu, 0);
        again.set_lora(Some(LoraConfig::new(2, 4.0, Targets::AllLinear))).unwrap();
        let half = Linear::new(&again.root().sub("fc"), 4, 3).in_bf16(true);
        let x = NoiseStream::new(0).normal(&[5, 4], Device::Cpu);
        let away = || {
            let (a, b) = (exact.forward(&x), half.forward(&x));
            assert_eq!((a.kind(), b.kind()), (Kind::Float, Kind::BFloat16));
            (a - b.to_kind(Kind::Float)).abs().max().double_value(&[])
        };
        assert!((1e-5..0.05).contains(&away()), "bf16 holds 8 bits: {}", away());
        perturb(&params);
        assert!(away() > 0.1, "one adapter alone moved");
        perturb(&again);
        assert!(away() < 0.2, "{}", away());
    }

    #[test]
    fn scale_is_alpha_over_rank_or_its_root() {
        // x = 1, A = 1 (r = 4 rows), B = 1: B A x = 4; the layer itself is zero.
        for (rank_stabilised, expected) in [(false, 4.0 * 8.0 / 4.0), (true, 4.0 * 8.0 / 2.0)] {
            let params = Params::new(Device::Cpu, 0);
            let names = Targets::Names(vec!["fc".to_owned()]);
            params
                .set_lora(Some(LoraConfig { rank_stabilised, ..LoraConfig::new(4, 8.0, names) }))
                .unwrap();
            let fc = Linear::with_init(&params.root().sub("fc"), 1, 1, Init::Zeros, false);
            let other = Linear::with_init(&params.root().sub("xfc"), 1, 1, Init::Zeros, false);
            for (name, tensor) in params.all() {
                let _guard = tch::no_grad_guard();
                if is_adapter(&name) {
                    let _ = tensor.shallow_clone().fill_(1.0);
                }
            }
            let one = Tensor::ones([1, 1], (Kind::Float, Device::Cpu));
            assert_eq!(fc.forward(&one).double_value(&[0, 0]), expected);
            assert_eq!(other.forward(&one).double_value(&[0, 0]), 0.0);
        }
    }

    #[test]
    fn merging_keeps_the_function_and_unmerging_the_bits() {
        let (params, mlp) = adapted(LoraConfig::new(2, 4.0, Targets::AllLinear));
        perturb(&params);
        let _guard = tch::no_grad_guard();
        let x = NoiseStream::new(0).normal(&[5, 4], Device::Cpu);
        let (y, before) = (mlp.forward(&x), params.snapshot());
        let exported = params.merged();
        let kept = params.merge();
        assert!(mlp.forward(&x).allclose(&y, 1e-5, 1e-6, false));
        assert!(exported["mlp.0.weight"].equal(&params.get("mlp.0.weight").unwrap()));
        assert!(exported.keys().all(|name| !is_adapter(name)));
        params.unmerge(&kept);
        assert!(mlp.forward(&x).equal(&y));
        for (name, tensor) in params.all() {
            assert!(tensor.equal(&before[&name]), "{name}");
        }
    }

    #[test]
    fn dropout_acts_only_with_a_stream_and_keeps_the_mean() {
        let config = LoraConfig { dropout: 0.5, ..LoraConfig::new(2, 4.0, Targets::AllLinear) };
        let (params, mlp) = adapted(config);
        perturb(&params);
        let _guard = tch::no_grad_guard();
        let x = NoiseStream::new(0).normal(&[5, 4], Device::Cpu);
        let still = mlp.forward(&x);
        assert!(mlp.forward(&x).equal(&still));
        let noisy = |seed| {
            params.set_dropout(Some(NoiseStream::new(seed)));
            mlp.forward(&x)
        };
        assert!(noisy(1).equal(&noisy(1)));
        assert!(!noisy(1).equal(&noisy(2)));
    }

    #[test]
    fn peft_files_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let config = LoraConfig {
            dropout: 0.1,
            rank_pattern: BTreeMap::from([("mlp.1".to_owned(), 3)]),
            ..LoraConfig::new(2, 4.0, Targets::AllLinear)
        };
        let (params, _) = adapted(config.clone());
        perturb(&params);
        save_peft(folder.path(), &params, "base").unwrap();
        let (read, base) =
            LoraConfig::from_peft(&folder.path().join("adapter_config.json")).unwrap();
        assert_eq!((read, base.as_deref()), (config.clone(), Some("base")));
        let values =
            safetensors_io::load(&folder.path().join("adapter_model.safetensors")).unwrap();
        assert!(values.contains_key("base_model.model.mlp.0.lora_A.weight"));
        let (other, _) = adapted(config);
        other.load_adapters(&values).unwrap();
        assert!(
            other
                .get("mlp.1.lora_B.weight")
                .unwrap()
                .equal(&params.get("mlp.1.lora_B.weight").unwrap())
        );
    }

    #[test]
    fn settings_that_change_the_computation_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter_config.json");
        for (text, word) in [
            (r#"{"peft_type":"LORA","target_modules":["q"],"use_dora":true}"#, "use_dora"),
            (r#"{"peft_type":"LOHA","target_modules":["q"]}"#, "LOHA"),
            (r#"{"target_modules":["q"],"bias":"all"}"#, "bias"),
            (r#"{"target_modules":".*q"}"#, "target_modules"),
            (r#"{"target_modules":["q"],"r":0}"#, "r = 0"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = LoraConfig::from_peft(&path).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("adapter_config.json"), "{error}");
        }
    }
}

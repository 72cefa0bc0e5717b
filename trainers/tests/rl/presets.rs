//! Every preset is one that the programs read.

use std::path::Path;

use simloop_trainers::config::RunConfig;
use simloop_trainers::rl_config::RlConfig;

#[test]
fn every_preset_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let outcome = if text.contains("[data]") {
            RunConfig::load(&path, &["data.path=somewhere".to_owned()]).map(|_| ())
        } else {
            let init = (!text.contains("[policy.model]")).then(|| "policy.init=p".to_owned());
            RlConfig::load(&path, init.as_slice()).map(|_| ())
        };
        assert!(outcome.is_ok(), "{}: {}", path.display(), outcome.unwrap_err());
        seen += 1;
    }
    assert!(seen > 8);
}

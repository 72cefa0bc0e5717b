//! Fetches LIBERO's assets (meshes, textures, scenes) from the Hugging Face hub: `bench libero --download-assets`.
//!
//! No Python package carries them. The hub's API (`/api/datasets/<repo>/revision/<rev>`, `…/tree/<commit>`,
//! `/datasets/<repo>/resolve/<commit>/<path>`) names every file with its size and hash: SHA-256 for large files, the git blob
//! id for the others. A file counts only when both agree, the folder appears under its final name only when it is whole, and
//! a download that was interrupted goes on where it stopped.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::Agent;

use crate::BenchError;

/// The hub, unless `$HF_ENDPOINT` names a mirror.
pub const HUB: &str = "https://huggingface.co";
/// The data set that hf-libero itself downloads (`libero/libero/utils/download_utils.py`).
pub const LIBERO_ASSETS_REPO: &str = "lerobot/libero-assets";

const MAX_LISTING_BYTES: u64 = 64 << 20;
const MAX_PAGES: usize = 1000;
const MAX_TOTAL_BYTES: u64 = 50 << 30;
const MAX_TRIES: u32 = 5;
const STALL: Duration = Duration::from_mins(1);
/// Files of the repository that describe it; the simulator reads none of them.
const SKIPPED: [&str; 2] = [".gitattributes", "README.md"];

/// Where to fetch from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssetSource {
    /// The hub's address.
    pub endpoint: String,
    /// The data set, `owner/name`.
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// How long to wait before the second try; doubles with every further one.
    pub retry_wait: Duration,
}

impl Default for AssetSource {
    /// `lerobot/libero-assets`, branch `main`, from `$HF_ENDPOINT` or the hub.
    fn default() -> Self {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|url| !url.is_empty());
        Self {
            endpoint: endpoint.unwrap_or_else(|| HUB.into()),
            repo: LIBERO_ASSETS_REPO.into(),
            revision: "main".into(),
            retry_wait: Duration::from_secs(2),
        }
    }
}

/// How far a download is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Files that are whole.
    pub files: u64,
    /// Files in all.
    pub files_total: u64,
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// A finished download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// Where the assets lie.
    pub folder: PathBuf,
    /// The commit they come from.
    pub commit: String,
    /// The number of files.
    pub files: u64,
    /// Their size, bytes.
    pub bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.lfs.as_ref().map_or(self.size, |lfs| lfs.size)
    }
}

/// Why one try failed.
enum Failure {
    /// Another try may help.
    Passing(String),
    /// It would not.
    Lasting(String),
}

/// Downloads the whole data set into `folder`, which must not exist yet; an interrupted download of the same commit, kept
/// beside it as `<folder>.partial`, is continued.
///
/// # Errors
/// [`BenchError::Usage`] if the hub cannot be reached or serves something else than it lists, with the remedy;
/// [`BenchError::Folder`] if `folder` exists or cannot be written.
pub fn download_assets(
    source: &AssetSource,
    folder: &Path,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Downloaded, BenchError> {
    if folder.exists() {
        return Err(BenchError::folder(folder, "it exists already; delete it to download again"));
    }
    let hub = Hub::new(source);
    let commit = hub.commit()?;
    let entries = hub.list(&commit)?;
    let total: u64 = entries.iter().map(Entry::bytes).sum();
    if total > MAX_TOTAL_BYTES {
        return Err(hub.refuse(&format!("it lists {total} bytes, more than any LIBERO has")));
    }

    let mut name = folder.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = folder.with_file_name(name);
    fs::create_dir_all(&partial).map_err(|e| BenchError::io(&partial, &e))?;
    let mut state =
        Progress { files: 0, files_total: entries.len() as u64, bytes: 0, bytes_total: total };
    for entry in &entries {
        let target = partial.join(safe_path(&entry.path).ok_or_else(|| {
            hub.refuse(&format!(
                "it lists the path `{}`, which leads out of the folder",
                entry.path
            ))
        })?);
        if !(target.is_file() && matches(&target, entry).unwrap_or(false)) {
            hub.fetch(&commit, entry, &target)?;
        }
        state.files += 1;
        state.bytes += entry.bytes();
        progress(&state);
    }
    fs::rename(&partial, folder).map_err(|e| BenchError::io(folder, &e))?;
    Ok(Downloaded { folder: folder.to_owned(), commit, files: state.files, bytes: total })
}

struct Hub<'a> {
    source: &'a AssetSource,
    agent: Agent,
    endpoint: &'a str,
}

impl<'a> Hub<'a> {
    fn new(source: &'a AssetSource) -> Self {
        let agent = Agent::config_builder()
            .timeout_connect(Some(STALL))
            .timeout_recv_response(Some(STALL))
            .timeout_per_read(Some(STALL))
            .user_agent(concat!("simloop/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self { source, agent, endpoint: source.endpoint.trim_end_matches('/') }
    }

    /// The commit behind the revision, so that all files come from one state of the repository.
    fn commit(&self) -> Result<String, BenchError> {
        #[derive(Deserialize)]
        struct Revision {
            sha: String,
        }
        let AssetSource { repo, revision, .. } = self.source;
        let url = format!("{}/api/datasets/{repo}/revision/{}", self.endpoint, encode(revision));
        let (text, _) = self.text(&url)?;
        let Revision { sha } = serde_json::from_str(&text)
            .map_err(|e| self.refuse(&format!("its answer about `{revision}` is odd: {e}")))?;
        if sha.is_empty() || !sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(self.refuse(&format!("it names the commit `{sha}`")));
        }
        Ok(sha)
    }

    fn list(&self, commit: &str) -> Result<Vec<Entry>, BenchError> {
        let mut files = Vec::new();
        let mut next = Some(format!(
            "{}/api/datasets/{}/tree/{commit}?recursive=true",
            self.endpoint, self.source.repo
        ));
        for _ in 0..MAX_PAGES {
            let Some(url) = next else { break };
            let (text, link) = self.text(&url)?;
            let page: Vec<Entry> = serde_json::from_str(&text)
                .map_err(|e| self.refuse(&format!("its list of files is odd: {e}")))?;
            files.extend(
                page.into_iter()
                    .filter(|e| e.kind == "file" && !SKIPPED.contains(&e.path.as_str())),
            );
            next = link.as_deref().and_then(next_page);
        }
        if files.is_empty() {
            return Err(self.refuse("it lists no files"));
        }
        Ok(files)
    }

    /// A small text and its `Link` header.
    fn text(&self, url: &str) -> Result<(String, Option<String>), BenchError> {
        self.retry(url, || {
            let mut answer = self.agent.get(url).call().map_err(|e| classify(&e))?;
            let link = answer
                .headers()
                .get("link")
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned);
            let text = answer
                .body_mut()
                .with_config()
                .limit(MAX_LISTING_BYTES)
                .read_to_string()
                .map_err(|e| classify(&e))?;
            Ok((text, link))
        })
    }

    fn fetch(&self, commit: &str, entry: &Entry, target: &Path) -> Result<(), BenchError> {
        let path: Vec<_> = entry.path.split('/').map(encode).collect();
        let url = format!(
            "{}/datasets/{}/resolve/{commit}/{}",
            self.endpoint,
            self.source.repo,
            path.join("/")
        );
        let dir = target.parent().expect("a file inside the folder has a parent");
        fs::create_dir_all(dir).map_err(|e| BenchError::io(dir, &e))?;
        let mut name = target.file_name().unwrap_or_default().to_os_string();
        name.push(".part");
        let part = target.with_file_name(name);
        self.retry(&url, || self.try_fetch(&url, entry, &part))?;
        fs::rename(&part, target).map_err(|e| BenchError::io(target, &e))
    }

    /// Continues `part` and checks it once it is whole.
    fn try_fetch(&self, url: &str, entry: &Entry, part: &Path) -> Result<(), Failure> {
        let local = |e: std::io::Error| Failure::Lasting(format!("{}: {e}", part.display()));
        let wanted = entry.bytes();
        let mut have = fs::metadata(part).map_or(0, |m| m.len());
        if have > wanted {
            fs::remove_file(part).map_err(local)?;
            have = 0;
        }
        if have < wanted || wanted == 0 {
            let mut request = self.agent.get(url);
            if have > 0 {
                request = request.header("Range", format!("bytes={have}-"));
            }
            let mut answer = request.call().map_err(|e| classify(&e))?;
            let resumes = answer.status() == 206;
            let mut file = OpenOptions::new()
                .create(true)
                .write(true)
                .append(resumes)
                .truncate(!resumes)
                .open(part)
                .map_err(local)?;
            let mut body = answer.body_mut().with_config().limit(wanted + 1).reader();
            let mut buffer = vec![0; 1 << 16];
            loop {
                match body.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => file.write_all(&buffer[..n]).map_err(local)?,
                    Err(e) => return Err(Failure::Passing(e.to_string())),
                }
            }
            file.sync_all().map_err(local)?;
        }
        let got = fs::metadata(part).map_err(local)?.len();
        if got < wanted {
            return Err(Failure::Passing(format!(
                "the connection ended after {got} of {wanted} bytes"
            )));
        }
        if matches(part, entry).map_err(local)? {
            return Ok(());
        }
        // Nothing of it can be trusted: the next try starts from the first byte.
        fs::remove_file(part).map_err(local)?;
        Err(Failure::Passing(format!("`{}` does not have the hash that the hub lists", entry.path)))
    }

    fn retry<T>(
        &self,
        url: &str,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, BenchError> {
        let mut wait = self.source.retry_wait;
        for tries in 1.. {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Passing(why)) if tries < MAX_TRIES => {
                    tracing::warn!(url, why, tries, "download failed, trying again");
                    std::thread::sleep(wait);
                    wait *= 2;
                }
                Err(Failure::Passing(why) | Failure::Lasting(why)) => {
                    return Err(self.refuse(&format!("{url}: {why}")));
                }
            }
        }
        unreachable!("the loop above ends with its last try")
    }

    fn refuse(&self, why: &str) -> BenchError {
        BenchError::usage(format!(
            "cannot download {} from {}: {why}; where the hub cannot be reached, copy the folder from a machine that can \
             and name it with --assets",
            self.source.repo, self.endpoint
        ))
    }
}

fn classify(error: &ureq::Error) -> Failure {
    match error {
        // Too many requests and the server's own troubles pass; everything else with a status stays.
        ureq::Error::StatusCode(code) if *code == 429 || *code >= 500 => {
            Failure::Passing(format!("HTTP status {code}"))
        }
        ureq::Error::StatusCode(code) => Failure::Lasting(format!("HTTP status {code}")),
        ureq::Error::BadUri(_) | ureq::Error::HostNotFound | ureq::Error::InvalidProxyUrl => {
            Failure::Lasting(error.to_string())
        }
        _ => Failure::Passing(error.to_string()),
    }
}

/// The address behind `rel="next"` in a `Link` header (RFC 8288).
fn next_page(link: &str) -> Option<String> {
    link.split(',').find_map(|part| {
        let (url, parameters) = part.trim().strip_prefix('<')?.split_once('>')?;
        parameters.contains("rel=\"next\"").then(|| url.to_owned())
    })
}

/// A relative path without `..`, roots or empty parts.
fn safe_path(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && path.components().next().is_some() && !path.to_string_lossy().contains(['\\', '\0']))
        .then(|| path.to_path_buf())
}

/// Percent-encodes everything but unreserved characters (RFC 3986).
fn encode(part: &str) -> String {
    use std::fmt::Write as _;
    part.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _infallible = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// Whether a file has the size and the hash that the hub lists.
fn matches(path: &Path, entry: &Entry) -> std::io::Result<bool> {
    let mut file = fs::File::open(path)?;
    let size = file.metadata()?.len();
    if size != entry.bytes() {
        return Ok(false);
    }
    let (wanted, got) = if let Some(lfs) = &entry.lfs {
        (&lfs.oid, hash(Sha256::new(), &mut file)?)
    } else {
        // A git blob's id: SHA-1 over a header and the contents.
        (&entry.oid, hash(Sha1::new_with_prefix(format!("blob {size}\0")), &mut file)?)
    };
    Ok(wanted.trim_start_matches("sha256:").eq_ignore_ascii_case(&got))
}

fn hash<D: Digest>(mut hasher: D, file: &mut fs::File) -> std::io::Result<String> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    Ok(hex(&hasher.finalize()))
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;

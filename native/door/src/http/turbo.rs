//! Turborepo's remote cache, version 8: artifacts by hash, each with the duration and the signature that its writer sent,
//! kept and returned as one. A team is the last part of the instance's name.

use buildnet_formats::{Digest, NativeError};
use buildnet_store::Kept;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use serde_json::{Value, json};
use tonic::body::Body;

use super::HttpCache;
use super::inbound::{Inbound, on_disk};
use super::outbound::{Asked, respond};
use super::refusal::Refusal;
use super::route::{Target, artifact_name, bad, decoded, instance_of_team};
use super::values::key_of;
use crate::access::Caller;
use crate::updates::Update;

/// What a client may say of an artifact, and at most in so many bytes.
const KEPT_HEADERS: [(&str, usize); 4] =
    [("x-artifact-duration", 20), ("x-artifact-tag", 600), ("x-artifact-dirty-hash", 255), ("x-artifact-sha", 255)];
const BODY_BYTES_MAX: usize = 256 << 10;
const HASHES_MAX: usize = 10_000;
const JSON: &str = "application/json";

/// The instance with the team that the query names; `teamId` goes before `slug`.
pub(super) fn instance_of(instance: String, parts: &Parts) -> Result<String, Refusal> {
    let (mut id, mut slug) = (None, None);
    for pair in parts.uri.query().unwrap_or("").split('&') {
        match pair.split_once('=') {
            Some(("teamId", value)) if !value.is_empty() => id = Some(decoded(value)?),
            Some(("slug", value)) if !value.is_empty() => slug = Some(decoded(value)?),
            _ => {}
        }
    }
    match id.or(slug) {
        Some(team) => instance_of_team(&instance, &team),
        None => Ok(instance),
    }
}

struct Artifact {
    digest: Digest,
    said: Value,
}

impl HttpCache {
    pub(super) async fn turbo(
        &self,
        caller: &Caller,
        instance: &str,
        target: &Target,
        parts: &Parts,
        inbound: &mut Inbound,
    ) -> Result<Response<Body>, Refusal> {
        match (target, &parts.method) {
            (Target::TurboStatus, &Method::GET) => Ok(respond(StatusCode::OK, JSON, "{\"status\":\"enabled\"}")),
            (Target::TurboStatus, _) => Err(Refusal::method("GET")),
            (Target::TurboEvents, &Method::POST) => {
                // They are the client's own figures; that they are an array is all that is asked.
                match serde_json::from_slice(&inbound.whole(BODY_BYTES_MAX).await?) {
                    Ok(Value::Array(_)) => Ok(respond(StatusCode::OK, JSON, "{}")),
                    _ => Err(bad("events are a JSON array")),
                }
            }
            (Target::TurboQuery, &Method::POST) => {
                let body = inbound.whole(BODY_BYTES_MAX).await?;
                self.query(caller, instance, &body).await
            }
            (Target::TurboEvents | Target::TurboQuery, _) => Err(Refusal::method("POST")),
            (Target::TurboArtifact(hash), &Method::GET | &Method::HEAD) => {
                let absent = || NativeError::not_found("artifact", hash);
                let artifact = self.artifact(caller, instance, hash).await?.ok_or_else(absent)?;
                let asked = Asked { method: &parts.method, headers: &parts.headers, coded: false };
                let mut response = self.send_blob(&artifact.digest, asked).await?;
                say(&artifact.said, response.headers_mut());
                Ok(response)
            }
            (Target::TurboArtifact(hash), &Method::PUT) => {
                self.write_artifact(&caller.written(instance), hash, parts, inbound).await
            }
            _ => Err(Refusal::method("GET, HEAD, PUT, OPTIONS")),
        }
    }

    /// An artifact whose bytes are here.
    async fn artifact(&self, caller: &Caller, instance: &str, hash: &str) -> Result<Option<Artifact>, NativeError> {
        let Some(Kept::Here(entry)) = self.look_up(caller, instance, &path_of(hash)).await? else { return Ok(None) };
        let malformed = || NativeError::new("state_corrupt", format!("the entry of the artifact {hash} is malformed"));
        let mut said: Value = serde_json::from_slice(&entry).map_err(|_| malformed())?;
        let digest = said.as_object_mut().and_then(|facts| facts.remove("digest")).ok_or_else(malformed)?;
        let digest: Digest = digest.as_str().ok_or_else(malformed)?.parse()?;
        let mut here = self.store.contains(&digest);
        if let (false, Some(tiers)) = (here, &self.tiers) {
            here = tiers.pull(vec![digest]).await?.is_empty();
        }
        Ok(here.then_some(Artifact { digest, said }))
    }

    async fn write_artifact(
        &self,
        namespace: &str,
        hash: &str,
        parts: &Parts,
        inbound: &mut Inbound,
    ) -> Result<Response<Body>, Refusal> {
        let mut facts = serde_json::Map::new();
        for (name, bytes_max) in KEPT_HEADERS {
            let Some(value) = parts.headers.get(name) else { continue };
            let text = value.to_str().ok().filter(|text| text.len() <= bytes_max);
            let text = text.ok_or_else(|| bad(&format!("{name} is at most {bytes_max} plain characters")))?;
            facts.insert(name.to_owned(), Value::from(text));
        }
        if facts.get(KEPT_HEADERS[0].0).and_then(Value::as_str).is_some_and(|text| text.parse::<u64>().is_err()) {
            return Err(bad("x-artifact-duration is a number of milliseconds"));
        }
        let key = key_of(namespace, &path_of(hash));
        let intake = self.take_in(u64::MAX, parts, inbound).await?;
        let work = move || {
            // The blob first: an entry names nothing that is not here.
            let digest = intake.commit()?;
            facts.insert("digest".to_owned(), Value::from(digest.to_string()));
            Ok((digest, Update::of_value(key, Value::from(facts).to_string().into())?))
        };
        let (digest, update) = on_disk(self.store.waits_for_disk(), work).await?;
        if let Some(tiers) = &self.tiers {
            tiers.written(vec![digest]).await.into_iter().collect::<Result<(), _>>()?;
        }
        self.updates.keep(update).await?;
        let text = json!({ "urls": [format!("/v8/artifacts/{hash}")] }).to_string();
        Ok(respond(StatusCode::ACCEPTED, JSON, text))
    }

    async fn query(&self, caller: &Caller, instance: &str, body: &[u8]) -> Result<Response<Body>, Refusal> {
        let hashes = serde_json::from_slice::<Value>(body).ok().and_then(|mut body| {
            let hashes = body.get_mut("hashes")?.as_array_mut()?;
            std::mem::take(hashes).into_iter().map(|hash| Some(hash.as_str()?.to_owned())).collect::<Option<Vec<_>>>()
        });
        let hashes = hashes.ok_or_else(|| bad("write {\"hashes\": [\"HASH\", ...]}"))?;
        if hashes.len() > HASHES_MAX {
            return Err(bad(&format!("{} hashes are too many; at most {HASHES_MAX}", hashes.len())));
        }
        let mut answers = serde_json::Map::new();
        for hash in hashes {
            artifact_name(&hash)?;
            let answer = match self.artifact(caller, instance, &hash).await? {
                None => Value::Null,
                Some(artifact) => described(&artifact),
            };
            answers.insert(hash, answer);
        }
        Ok(respond(StatusCode::OK, JSON, Value::from(answers).to_string()))
    }
}

fn path_of(hash: &str) -> String {
    format!("v8/artifacts/{hash}")
}

fn described(artifact: &Artifact) -> Value {
    let text = |name: &str| artifact.said.get(name).and_then(Value::as_str);
    let mut answer = json!({
        "size": artifact.digest.size_bytes(),
        "taskDurationMs": text("x-artifact-duration").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0),
    });
    if let (Some(tag), Some(answer)) = (text("x-artifact-tag"), answer.as_object_mut()) {
        answer.insert("tag".to_owned(), Value::from(tag));
    }
    answer
}

/// Give back what the writer said.
fn say(said: &Value, headers: &mut HeaderMap) {
    for (name, _) in KEPT_HEADERS {
        let value = said.get(name).and_then(Value::as_str).and_then(|text| HeaderValue::from_str(text).ok());
        if let Some(value) = value {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

//! What a run sends and what it expects, made ready before time runs. No request is sent whose answer is not known.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::bytestream as bs;
use bytes::Bytes;
use http::Uri;

use crate::actions;
use crate::arguments::{Call, RunOptions};
use crate::connection::{Connection, Failure, NOT_FOUND, OK, Reply, uri};
use crate::content::{ABSENT, Hash, KEPT, Tail, Template, splitmix, tail};
use crate::messages::{self, ACTION_SIZE_BYTES, BATCH_BLOBS, MISS_SIZE_BYTES, Pattern, Upload};
use crate::verify::{self, Reading};

const RE: &str = "/build.bazel.remote.execution.v2";
const ACTIONS: u64 = 256;
const SMALL_BLOBS: u64 = 64;
const LARGE_BLOBS_MAX: u64 = 4;
const LARGE_BYTES: usize = 1 << 20;
const BATCH_VARIANTS: u64 = 64;
const FIND_POOL: usize = 2000;
/// Of a large store so many are asked for: more than caches hold, and few enough to be made ready.
const SCATTERED: usize = 200_000;
const PREPARE_BATCH_BYTES: usize = 1 << 20;
const PREPARE_BATCH_BLOBS: usize = 1000;

enum Want {
    Result,
    Executed,
    Missing(BTreeSet<String>),
    Batch(Vec<(Hash, Tail)>),
    Blob(Tail),
}

struct Variant {
    request: Bytes,
    want: Want,
    /// An answer that was found right: the same bytes again need no decoding.
    known: RefCell<Bytes>,
}

enum Source {
    Variants(Vec<Variant>),
    Miss(Pattern),
    Update(Pattern),
    Batch(Pattern),
    Upload(Upload),
    /// Actions of this instance.
    Actions(String),
}

/// A request, and what its answer must be.
pub struct Outgoing {
    /// What must be there before it: BatchUpdateBlobs.
    before: Option<Bytes>,
    messages: Vec<Bytes>,
    expect: Expect,
}

enum Expect {
    Variant(usize),
    NotFound,
    Result,
    Batch(Vec<Hash>),
    Written,
    Ran,
}

/// All that a run sends.
pub struct Work {
    uri: Uri,
    upload_uri: Uri,
    source: Source,
    template: Template,
    result: re::ActionResult,
    known_result: RefCell<Bytes>,
    family: u64,
    number: Cell<u64>,
    random: Cell<u64>,
    turn: Cell<usize>,
}

impl Work {
    /// Upload what the call needs, and build its requests. `seed` makes what is new in this run new to the server.
    ///
    /// # Errors
    /// The server refuses what is uploaded.
    pub async fn prepare(options: &RunOptions, connection: &mut Connection, seed: u64) -> Result<Self, String> {
        let size = match options.call {
            Call::ResultHit | Call::ResultMiss | Call::ResultUpdate | Call::ExecuteHit => ACTION_SIZE_BYTES,
            _ => options.size_bytes,
        };
        let template = Template::new(size);
        let mut setup = Setup { options, connection, template: &template };
        let source = setup.source().await?;
        let path = match options.call {
            Call::ResultHit | Call::ResultMiss => format!("{RE}.ActionCache/GetActionResult"),
            Call::ResultUpdate => format!("{RE}.ActionCache/UpdateActionResult"),
            Call::ExecuteHit => format!("{RE}.Execution/Execute"),
            Call::FindMissing => format!("{RE}.ContentAddressableStorage/FindMissingBlobs"),
            Call::BatchUpdate => format!("{RE}.ContentAddressableStorage/BatchUpdateBlobs"),
            Call::BatchRead => format!("{RE}.ContentAddressableStorage/BatchReadBlobs"),
            Call::Write => "/google.bytestream.ByteStream/Write".to_owned(),
            Call::Read => "/google.bytestream.ByteStream/Read".to_owned(),
            Call::Execute => format!("{RE}.Execution/Execute"),
        };
        Ok(Self {
            uri: uri(&options.address, &path)?,
            upload_uri: uri(&options.address, &format!("{RE}.ContentAddressableStorage/BatchUpdateBlobs"))?,
            source,
            template,
            result: messages::action_result(),
            known_result: RefCell::default(),
            family: seed,
            number: Cell::new(0),
            random: Cell::new(seed),
            turn: Cell::new(0),
        })
    }

    /// The next request.
    pub fn next(&self) -> Outgoing {
        let (message, expect) = match &self.source {
            Source::Variants(variants) => {
                let turn = self.turn.get();
                self.turn.set((turn + 1) % variants.len());
                (variants[turn].request.clone(), Expect::Variant(turn))
            }
            Source::Miss(pattern) => (pattern.with(|| self.fresh()), Expect::NotFound),
            Source::Update(pattern) => (pattern.with(|| self.fresh()), Expect::Result),
            Source::Batch(pattern) => {
                let mut hashes = Vec::with_capacity(BATCH_BLOBS);
                let message = pattern.with(|| {
                    let (hash, tail) = self.fresh();
                    hashes.push(hash);
                    (hash, tail)
                });
                (message, Expect::Batch(hashes))
            }
            Source::Upload(upload) => {
                let (hash, tail) = self.fresh();
                let mixed = [self.mixed(), self.mixed()];
                let messages = upload.with(&hash, &tail, mixed);
                return Outgoing { before: None, messages, expect: Expect::Written };
            }
            Source::Actions(instance) => {
                let action = actions::no_op(instance, self.family, self.numbered());
                return Outgoing { before: Some(action.upload), messages: vec![action.execute], expect: Expect::Ran };
            }
        };
        Outgoing { before: None, messages: vec![message], expect }
    }

    /// Send what must be there before the request; it is no part of the call's time.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn ready(&self, connection: &mut Connection, outgoing: &Outgoing) -> Result<(), Failure> {
        let Some(before) = &outgoing.before else { return Ok(()) };
        answered(connection.unary(&self.upload_uri, std::slice::from_ref(before)).await?).map(drop)
    }

    /// Send it, and verify the answer.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn call(&self, connection: &mut Connection, outgoing: &Outgoing) -> Result<(), Failure> {
        if let (Expect::Variant(index), Source::Variants(variants)) = (&outgoing.expect, &self.source) {
            let variant = &variants[*index];
            if let Want::Blob(tail) = &variant.want {
                let mut reading = Reading::new(&self.template, *tail);
                return connection.read(&self.uri, &variant.request, &mut reading).await;
            }
            let message = answered(connection.unary(&self.uri, &outgoing.messages).await?)?;
            // A result is the same whichever action has it.
            let known = if let Want::Result = variant.want { &self.known_result } else { &variant.known };
            return once(known, message, |message| self.check(&variant.want, message)).map_err(Failure::Wrong);
        }
        let reply = connection.unary(&self.uri, &outgoing.messages).await?;
        if let Expect::Ran = outgoing.expect {
            return match reply.status {
                OK => actions::ran(&reply.body).map_err(Failure::Wrong),
                _ => answered(reply).map(drop),
            };
        }
        if let Expect::NotFound = outgoing.expect {
            return match reply.status {
                NOT_FOUND => Ok(()),
                OK => Err(Failure::Wrong("a result of an action that has none".to_owned())),
                _ => answered(reply).map(|_| ()),
            };
        }
        let message = answered(reply)?;
        let verdict = match &outgoing.expect {
            Expect::Batch(hashes) => verify::batch_update(message, hashes),
            Expect::Written => {
                once(&self.known_result, message, |message| verify::written(message, self.template.size()))
            }
            _ => once(&self.known_result, message, |message| verify::result(message, &self.result)),
        };
        verdict.map_err(Failure::Wrong)
    }

    fn check(&self, want: &Want, message: Bytes) -> Result<(), String> {
        match want {
            Want::Result => verify::result(message, &self.result),
            Want::Executed => verify::executed(message, &self.result),
            Want::Missing(hashes) => verify::missing(message, hashes, self.template.size()),
            Want::Batch(blobs) => verify::batch_read(message, blobs, &self.template),
            Want::Blob(_) => Ok(()),
        }
    }

    fn fresh(&self) -> (Hash, Tail) {
        let tail = tail(self.family, self.numbered());
        (self.template.hash(&tail), tail)
    }

    fn numbered(&self) -> u64 {
        let number = self.number.get();
        self.number.set(number + 1);
        number
    }

    fn mixed(&self) -> u64 {
        let mut state = self.random.get();
        let mixed = splitmix(&mut state);
        self.random.set(state);
        mixed
    }
}

fn answered(reply: Reply) -> Result<Bytes, Failure> {
    if reply.status != OK {
        return Err(Failure::Call(format!("status {}: {}", reply.status, reply.text)));
    }
    messages::unframed(&reply.body).map_err(Failure::Wrong)
}

fn once(known: &RefCell<Bytes>, message: Bytes, check: impl FnOnce(Bytes) -> Result<(), String>) -> Result<(), String> {
    let mut known = known.borrow_mut();
    // Some answers are right and empty, so an empty one is always looked at.
    if !message.is_empty() && *known == message {
        return Ok(());
    }
    check(message.clone())?;
    *known = message;
    Ok(())
}

struct Setup<'a> {
    options: &'a RunOptions,
    connection: &'a mut Connection,
    template: &'a Template,
}

impl Setup<'_> {
    async fn source(&mut self) -> Result<Source, String> {
        match self.options.call {
            Call::ResultHit => self.known_results(&self.get_pattern(ACTION_SIZE_BYTES as i64)?, || Want::Result).await,
            Call::ExecuteHit => self.known_results(&self.execute_pattern()?, || Want::Executed).await,
            Call::ResultMiss => Ok(Source::Miss(self.get_pattern(MISS_SIZE_BYTES)?)),
            Call::ResultUpdate => {
                self.outputs().await?;
                Ok(Source::Update(self.update_pattern()?))
            }
            Call::FindMissing => self.find_missing().await,
            Call::BatchUpdate => {
                let held: Vec<_> = (0..BATCH_BLOBS as u64).map(|number| self.kept(number)).collect();
                let message = self.batch_of(self.template, &held);
                let held: Vec<_> = held.into_iter().map(|(hash, tail)| (hash, Some(tail))).collect();
                Ok(Source::Batch(Pattern::new(&message, &held)?))
            }
            Call::BatchRead => self.batch_read().await,
            Call::Write => Ok(Source::Upload(Upload::new(&self.prefix(), self.template)?)),
            Call::Read => self.read().await,
            Call::Execute => Ok(Source::Actions(self.options.instance.clone())),
        }
    }

    /// One request for each of the actions that are given a result.
    async fn known_results(&mut self, ask: &Pattern, want: impl Fn() -> Want) -> Result<Source, String> {
        self.outputs().await?;
        let update = self.update_pattern()?;
        if let Some(stored) = self.options.stored {
            let numbers = 0..SCATTERED as u64;
            return Ok(Source::Variants(
                numbers.map(|n| variant(ask.with(|| self.scattered(n, stored)), want())).collect(),
            ));
        }
        let mut variants = Vec::new();
        for number in 0..ACTIONS {
            let kept = self.kept(number);
            self.must("ActionCache/UpdateActionResult", update.with(|| kept)).await?;
            variants.push(variant(ask.with(|| kept), want()));
        }
        Ok(Source::Variants(variants))
    }

    fn execute_pattern(&self) -> Result<Pattern, String> {
        let (hash, _) = self.kept(0);
        let message = re::ExecuteRequest {
            instance_name: self.options.instance.clone(),
            action_digest: Some(messages::digest(&hash, ACTION_SIZE_BYTES)),
            ..Default::default()
        };
        Pattern::new(&message, &[(hash, None)])
    }

    fn get_pattern(&self, size: i64) -> Result<Pattern, String> {
        let (hash, _) = self.kept(0);
        let message = re::GetActionResultRequest {
            instance_name: self.options.instance.clone(),
            action_digest: Some(re::Digest { hash: messages::text(&hash), size_bytes: size }),
            ..Default::default()
        };
        Pattern::new(&message, &[(hash, None)])
    }

    fn update_pattern(&self) -> Result<Pattern, String> {
        let (hash, _) = self.kept(0);
        let message = re::UpdateActionResultRequest {
            instance_name: self.options.instance.clone(),
            action_digest: Some(messages::digest(&hash, ACTION_SIZE_BYTES)),
            action_result: Some(messages::action_result()),
            ..Default::default()
        };
        Pattern::new(&message, &[(hash, None)])
    }

    async fn find_missing(&mut self) -> Result<Source, String> {
        let digests = self.options.digests;
        let pool = if self.options.stored.is_some() { SCATTERED } else { FIND_POOL };
        let variants_count = (pool / digests).max(4);
        let mut kept = Vec::new();
        let mut variants = Vec::new();
        for turn in 0..variants_count {
            let mut missing = BTreeSet::new();
            let mut blob_digests = Vec::with_capacity(digests);
            for place in 0..digests {
                let number = (turn * digests + place) as u64;
                let absent = self.options.half && place % 2 == 1;
                let (hash, tail) = match self.options.stored {
                    _ if absent => self.numbered(ABSENT, number),
                    Some(stored) => self.scattered(number, stored),
                    None => self.kept(number),
                };
                if absent {
                    missing.insert(messages::text(&hash));
                } else if self.options.stored.is_none() {
                    kept.push((hash, tail));
                }
                blob_digests.push(messages::digest(&hash, self.template.size()));
            }
            let message = re::FindMissingBlobsRequest {
                instance_name: self.options.instance.clone(),
                blob_digests,
                ..Default::default()
            };
            variants.push(variant(Bytes::from(messages::framed(&message)), Want::Missing(missing)));
        }
        self.upload(self.template, &kept).await?;
        Ok(Source::Variants(variants))
    }

    async fn batch_read(&mut self) -> Result<Source, String> {
        let mut variants = Vec::new();
        for turn in 0..BATCH_VARIANTS {
            let first = turn * BATCH_BLOBS as u64;
            let blobs: Vec<_> = (first..first + BATCH_BLOBS as u64).map(|number| self.kept(number)).collect();
            self.upload(self.template, &blobs).await?;
            let message = re::BatchReadBlobsRequest {
                instance_name: self.options.instance.clone(),
                digests: blobs.iter().map(|(hash, _)| messages::digest(hash, self.template.size())).collect(),
                ..Default::default()
            };
            variants.push(variant(Bytes::from(messages::framed(&message)), Want::Batch(blobs)));
        }
        Ok(Source::Variants(variants))
    }

    async fn read(&mut self) -> Result<Source, String> {
        let large = self.template.size() > LARGE_BYTES;
        let count = if large { (self.options.streams as u64).min(LARGE_BLOBS_MAX) } else { SMALL_BLOBS };
        let mut variants = Vec::new();
        for number in 0..count {
            let (hash, tail) = self.kept(number);
            if large {
                self.write(&hash, &tail).await?;
            } else {
                self.upload(self.template, &[(hash, tail)]).await?;
            }
            let resource_name = format!("{}blobs/{}/{}", self.prefix(), messages::text(&hash), self.template.size());
            let message = bs::ReadRequest { resource_name, ..Default::default() };
            variants.push(variant(Bytes::from(messages::framed(&message)), Want::Blob(tail)));
        }
        Ok(Source::Variants(variants))
    }

    /// What every action result refers to.
    async fn outputs(&mut self) -> Result<(), String> {
        let template = Template::new(messages::OUTPUT_SIZE_BYTES);
        let of = |number| {
            let tail = tail(KEPT, number);
            (template.hash(&tail), tail)
        };
        self.upload(&template, &(0..messages::OUTPUTS).map(of).collect::<Vec<_>>()).await
    }

    async fn upload(&mut self, template: &Template, blobs: &[(Hash, Tail)]) -> Result<(), String> {
        let at_once = (PREPARE_BATCH_BYTES / template.size()).clamp(1, PREPARE_BATCH_BLOBS);
        for blobs in blobs.chunks(at_once) {
            let message = messages::framed(&self.batch_of(template, blobs));
            let reply = self.must("ContentAddressableStorage/BatchUpdateBlobs", Bytes::from(message)).await?;
            let hashes: Vec<Hash> = blobs.iter().map(|(hash, _)| *hash).collect();
            verify::batch_update(reply, &hashes)?;
        }
        Ok(())
    }

    async fn write(&mut self, hash: &Hash, tail: &Tail) -> Result<(), String> {
        let upload = Upload::new(&self.prefix(), self.template)?;
        let uri = uri(&self.options.address, "/google.bytestream.ByteStream/Write")?;
        let reply = self.connection.unary(&uri, &upload.with(hash, tail, [0, 1])).await;
        let message = reply.and_then(answered).map_err(|failure| format!("preparing: {failure:?}"))?;
        verify::written(message, self.template.size())
    }

    async fn must(&mut self, method: &str, message: Bytes) -> Result<Bytes, String> {
        let uri = uri(&self.options.address, &format!("{RE}.{method}"))?;
        let reply = self.connection.unary(&uri, &[message]).await;
        reply.and_then(answered).map_err(|failure| format!("preparing: {method}: {failure:?}"))
    }

    fn batch_of(&self, template: &Template, blobs: &[(Hash, Tail)]) -> re::BatchUpdateBlobsRequest {
        let request = |(hash, tail): &(Hash, Tail)| re::batch_update_blobs_request::Request {
            digest: Some(messages::digest(hash, template.size())),
            data: template.blob(tail),
            ..Default::default()
        };
        re::BatchUpdateBlobsRequest {
            instance_name: self.options.instance.clone(),
            requests: blobs.iter().map(request).collect(),
            ..Default::default()
        }
    }

    fn kept(&self, number: u64) -> (Hash, Tail) {
        self.numbered(KEPT, number)
    }

    /// One of the first so many that an earlier run put, at random.
    fn scattered(&self, number: u64, stored: u64) -> (Hash, Tail) {
        let mut state = number;
        self.numbered(self.options.family.unwrap_or(KEPT), splitmix(&mut state) % stored)
    }

    fn numbered(&self, family: u64, number: u64) -> (Hash, Tail) {
        let tail = tail(family, number);
        (self.template.hash(&tail), tail)
    }

    fn prefix(&self) -> String {
        match self.options.instance.as_str() {
            "" => String::new(),
            name => format!("{name}/"),
        }
    }
}

fn variant(request: Bytes, want: Want) -> Variant {
    Variant { request, want, known: RefCell::default() }
}

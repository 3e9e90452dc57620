//! By which servers a question came. Two that are each other's tier would else wait for each other whenever both lack something,
//! until one gives up; so would any ring. Who says nothing of it is a client, and nothing here is believed for more than that.

use std::future::Future;
use std::sync::Arc;

/// The metadata of a call that says it: names of servers with commas between, the last asker's last.
pub const HEADER: &str = "buildnet-via";
const SERVERS_MAX: usize = 8;
const NAME_CHARS: usize = 16;

tokio::task_local! {
    static SERVERS: Arc<str>;
}

/// Do `work` for a question that came by these servers.
pub async fn coming_by<F: Future>(servers: &str, work: F) -> F::Output {
    SERVERS.scope(servers.into(), work).await
}

/// What a task of its own is to do, for the same question as this one.
pub(crate) fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let servers = SERVERS.try_with(Arc::clone).ok();
    async move {
        match servers {
            None => work.await,
            Some(servers) => SERVERS.scope(servers, work).await,
        }
    }
}

/// This server, until it ends.
pub(crate) struct Here(String);

impl Here {
    pub(crate) fn new() -> Self {
        Self(format!("{:0NAME_CHARS$x}", fastrand::u64(..)))
    }

    /// Whether the question came by another server.
    pub(crate) fn is_passed_on(&self) -> bool {
        SERVERS.try_with(|_| ()).is_ok()
    }

    /// Whether no server is to be asked further: it was here before, or came by too many.
    pub(crate) fn is_end(&self) -> bool {
        let ends = |servers: &Arc<str>| {
            let came = servers.split(',').count();
            came > SERVERS_MAX || servers.len() > came * (NAME_CHARS + 1) || servers.split(',').any(|one| one == self.0)
        };
        SERVERS.try_with(ends).unwrap_or(false)
    }

    /// What the next server is told.
    pub(crate) fn onward(&self) -> String {
        SERVERS.try_with(|servers| format!("{servers},{}", self.0)).unwrap_or_else(|_| self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_ends_where_it_was_before_and_after_many() {
        let (here, other) = (Here::new(), Here::new());
        assert!(!here.is_passed_on() && !here.is_end());
        let told = here.onward();
        coming_by(&told, async {
            assert!(other.is_passed_on() && !other.is_end() && here.is_end());
            let onward = tokio::spawn(carried(async move { other.onward() })).await.unwrap();
            assert!(onward.starts_with(&told));
            coming_by(&onward, async { assert!(here.is_end() && !Here::new().is_end()) }).await;
        })
        .await;
        assert!(!here.is_passed_on());
        let mut servers = told;
        for _ in 0..SERVERS_MAX {
            servers = coming_by(&servers, async { Here::new().onward() }).await;
        }
        for absurd in [&servers, &"x".repeat(1000)] {
            coming_by(absurd, async { assert!(Here::new().is_end()) }).await;
        }
    }
}

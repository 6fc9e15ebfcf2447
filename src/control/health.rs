//! Whether the instance of this configuration does its part, asked of the instance itself.

use anyhow::{Context, Result};
use serde::Serialize;

use super::Failure;
use super::instance::{Answer, Instance};
use crate::config::Admin;

/// What the instance says of itself.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HealthView {
    /// Whether it does its part.
    pub(crate) healthy: bool,
    /// Its own words.
    pub(crate) answer: String,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// Whether it is alive: also a halted instance is, until it has ended.
    Live,
    /// Whether it is ready.
    Ready,
}

/// Asks the instance that runs here with this configuration.
///
/// # Errors
/// When none answers.
pub(crate) async fn read(admin: &Admin, question: Question) -> Result<HealthView, Failure> {
    let instance = Instance::here(admin)?;
    Ok(ask(&instance, question).await.with_context(|| {
        format!("no instance answers at {} (`admin.listen`)", instance.address())
    })?)
}

async fn ask(instance: &Instance, question: Question) -> Result<HealthView> {
    let path = match question {
        Question::Live => "/livez",
        Question::Ready => "/readyz",
    };
    let Answer { is_ok, text } = instance.get(path).await?;
    Ok(HealthView { healthy: is_ok, answer: text })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::server;
    use crate::server::health::{self, Role};
    use crate::server::metrics::Metrics;
    use crate::server::work;

    #[tokio::test]
    async fn health_is_what_the_instance_says_of_itself() {
        let listener = server::admin::bind("0.0.0.0:0".parse().unwrap()).await.unwrap();
        let admin = Admin { listen: listener.local_addr().unwrap() };
        let metrics = Arc::new(Metrics::new("walhook", []).unwrap());
        let (tell, health) = watch::channel(health::Health::default());
        let mut tasks = JoinSet::new();
        let work = work::Shown::default();
        tasks.spawn(server::admin::serve(
            listener,
            metrics,
            health,
            work,
            CancellationToken::new(),
        ));
        for (role, healthy, answer) in [
            (Role::Standby, true, "ready"),
            (Role::Halted("the slot is lost".into()), false, "halted: the slot is lost"),
        ] {
            tell.send_modify(|health| health.role = role);
            let expected = HealthView { healthy, answer: answer.to_owned() };
            assert_eq!(read(&admin, Question::Ready).await.unwrap(), expected);
            assert!(read(&admin, Question::Live).await.unwrap().healthy);
        }
        tasks.shutdown().await;
        let nobody = read(&admin, Question::Ready).await.unwrap_err().to_string();
        assert!(nobody.contains("no instance answers at 127.0.0.1:"), "{nobody}");
    }
}

//! Killing a gateway while requests flow, and starting it again.

use std::time::Duration;

use anyhow::bail;

use super::cluster::Cluster;

/// The gateway that is killed: node2, neither first nor last in anybody's peer list.
const VICTIM: usize = 1;

/// Give up when the others do not show it DOWN, or ALIVE again, by then.
const WAIT: Duration = Duration::from_secs(30);

/// Where the outage stands; durations are since the start of the requests.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outage {
    /// To come at this time.
    Planned(Duration),
    /// Killed at this time, not yet DOWN everywhere.
    Killed(Duration),
    /// Started again at this time, not yet ALIVE everywhere.
    Restarted(Duration),
    /// Whole again.
    Over,
}

impl Outage {
    pub(super) fn planned(at: Duration) -> Self {
        Self::Planned(at)
    }

    /// Takes the next step when it is due; returns what to tell about it.
    ///
    /// # Errors
    /// When the others do not notice the death or the return within 30 s, or the process cannot be killed or started.
    pub(super) async fn advance(&mut self, cluster: &mut Cluster, now: Duration) -> anyhow::Result<Option<String>> {
        let name = cluster.gateways()[VICTIM].name.clone();
        match *self {
            Self::Planned(at) if now >= at => {
                cluster.kill(VICTIM).await?;
                *self = Self::Killed(now);
                Ok(Some(format!("*** kill -9 {name}; requests go on through the others")))
            }
            Self::Killed(at) if Self::is_seen_as(cluster, "DOWN").await => {
                cluster.restart(VICTIM)?;
                *self = Self::Restarted(now);
                Ok(Some(format!(
                    "*** {name} is DOWN at all others {} s after its death; starting it again",
                    (now - at).as_secs()
                )))
            }
            Self::Restarted(at) if cluster.first_unready().await.is_none() => {
                *self = Self::Over;
                Ok(Some(format!("*** {name} is ALIVE everywhere and ready {} s after its start", (now - at).as_secs())))
            }
            Self::Killed(at) if now - at > WAIT => bail!("{name} is not DOWN {} s after its death", WAIT.as_secs()),
            Self::Restarted(at) if now - at > WAIT => {
                bail!("{name} is not ALIVE everywhere {} s after its start", WAIT.as_secs())
            }
            Self::Planned(_) | Self::Killed(_) | Self::Restarted(_) | Self::Over => Ok(None),
        }
    }

    /// Whether the outage came to its end.
    ///
    /// # Errors
    /// When it did not, for want of time.
    pub(super) fn check_over(self) -> anyhow::Result<()> {
        match self {
            Self::Over => Ok(()),
            stage => bail!("--duration-secs ended before the killed gateway was back: {stage:?}"),
        }
    }

    async fn is_seen_as(cluster: &Cluster, status: &str) -> bool {
        let name = &cluster.gateways()[VICTIM].name;
        for (i, gateway) in cluster.gateways().iter().enumerate() {
            if i != VICTIM && cluster.status_seen_by(gateway, name).await.as_deref() != Some(status) {
                return false;
            }
        }
        true
    }
}

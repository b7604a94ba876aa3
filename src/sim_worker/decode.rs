//! Decoding: one request's tokens, each in its time.

use std::time::Duration;

use super::{
    engine::Ticket,
    http::ApiError,
    prompt::{self, Draws},
};

/// What an answer says about itself.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    /// Same for the same model and prompt.
    pub(super) id: u64,
    pub(super) model: String,
    pub(super) prompt_tokens: u32,
    pub(super) cached_tokens: u32,
    /// Tokens of the whole answer.
    pub(super) completion_tokens: u32,
    /// The request's `max_tokens` ended the answer, not the worker's `--tokens`.
    pub(super) is_cut_by_length: bool,
}

/// The stream ends here without an end, because a `truncate` fault said so.
#[derive(Debug, thiserror::Error)]
#[error("cut by a simulated fault")]
pub(super) struct Cut;

/// A request past its prefill.
#[derive(Debug)]
pub(super) struct Decoding {
    ticket: Ticket,
    about: Summary,
    draws: Draws,
    index: u32,
    pause: Duration,
}

impl Decoding {
    /// Waits for slot and prefill.
    ///
    /// # Errors
    /// 503 when the queue is full. The ticket is settled then.
    pub(super) async fn start(
        mut ticket: Ticket,
        model: String,
        prompt: &str,
        tokens_max: Option<u32>,
    ) -> Result<Self, ApiError> {
        let chain = ticket.engine.chain(&model, prompt);
        let prompt_tokens = prompt::tokens(prompt);
        let cached_tokens = match ticket.prefill(prompt_tokens, &chain).await {
            Ok(cached) => cached,
            Err(error) => {
                ticket.refuse();
                return Err(error);
            }
        };
        let args = &ticket.engine.args;
        let completion_tokens = tokens_max.unwrap_or(args.tokens).min(args.tokens);
        let is_cut_by_length = completion_tokens < args.tokens;
        let pause = Duration::from_millis(args.inter_token_delay_ms);
        let id = prompt::seed(&model, prompt);
        let about = Summary { id, model, prompt_tokens, cached_tokens, completion_tokens, is_cut_by_length };
        Ok(Self { ticket, about, draws: Draws(id), index: 0, pause })
    }

    /// What the answer says about itself.
    pub(super) fn about(&self) -> &Summary {
        &self.about
    }

    /// The next token after its time; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<&'static str>, Cut> {
        if self.ticket.truncates && self.index >= self.about.completion_tokens / 2 {
            // The server gives up what it has not written yet: its turn comes first.
            tokio::task::yield_now().await;
            return Err(Cut);
        }
        if self.index >= self.about.completion_tokens {
            return Ok(None);
        }
        if self.index > 0 && !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
        let token = prompt::token(&mut self.draws, self.index);
        self.index += 1;
        self.ticket.generated(1);
        Ok(Some(token))
    }

    /// All tokens, after the time of all of them.
    pub(super) async fn all(&mut self) -> String {
        let total = self.about.completion_tokens;
        let wait = self.pause.saturating_mul(total.saturating_sub(1));
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let mut text = String::with_capacity(total as usize * 8);
        for index in 0..total {
            text.push_str(prompt::token(&mut self.draws, index));
        }
        self.index = total;
        self.ticket.generated(total);
        text
    }

    /// The answer went out in full.
    pub(super) fn complete(self) {
        self.ticket.complete();
    }

    /// The worker itself broke the answer off.
    pub(super) fn refuse(self) {
        self.ticket.refuse();
    }

    /// The worker behind this request.
    pub(super) fn engine(&self) -> &super::engine::Engine {
        &self.ticket.engine
    }
}

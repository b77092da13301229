//! What the data plane answers, as tests read it.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use reqwest::{Response, header::HeaderMap};
use serde_json::Value;

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// Reads an answer.
    ///
    /// # Errors
    /// It breaks off.
    pub async fn of(response: Response) -> Result<Self> {
        Ok(Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await?,
        })
    }

    /// Its body as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {:?}", self.body))
    }

    /// Its body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header; empty where it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }

    /// Status, code and message of an error, whose code stands in body and header alike.
    ///
    /// # Errors
    /// It is none.
    pub fn fault(&self) -> Result<(u16, String, String)> {
        let body = self.json()?;
        let field = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
        ensure!(self.header("x-ms-error-code") == field("code"), "{body}");
        Ok((self.status, field("code"), field("message")))
    }

    /// Status and code of an error.
    ///
    /// # Errors
    /// As [`Reply::fault`].
    pub fn code(&self) -> Result<(u16, String)> {
        let (status, code, _) = self.fault()?;
        Ok((status, code))
    }
}

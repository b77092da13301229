//! A body that knows when it has been handed to its connection.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use crate::delivery::Delivery;

/// A response's body, and what it owes when it has arrived.
#[derive(Debug)]
pub(super) struct Carried {
    body: Body,
    delivery: Delivery,
    failed: bool,
}

impl Carried {
    pub(super) fn body(body: Body, delivery: Delivery) -> Body {
        Body::new(Self {
            body,
            delivery,
            failed: false,
        })
    }
}

impl http_body::Body for Carried {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            None => self.delivery.arrived(),
            Some(Err(_)) => self.failed = true,
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    /// Never, so that the end is always asked for.
    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where the length was known nobody may ask for the end: all was taken by then.
impl Drop for Carried {
    fn drop(&mut self) {
        if !self.failed && self.body.is_end_stream() {
            self.delivery.arrived();
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::{conversation::Principal, delivery::Freight, places::Places};

    fn delivery(places: &Places) -> Delivery {
        let delivery = Delivery::default();
        let in_flight = places.take(&Principal::Local).ok();
        delivery.carry(Freight {
            in_flight,
            ..Freight::default()
        });
        delivery
    }

    #[tokio::test]
    async fn a_body_has_arrived_when_its_last_byte_was_taken() {
        let places = Places::new(1);
        let kept = delivery(&places);
        let mut body = Carried::body(Body::from("all"), kept.clone());
        assert_eq!(places.free(), 0);
        let frame = body.frame().await;
        assert!(frame.is_some());
        drop(body);
        assert_eq!(
            places.free(),
            1,
            "it owes nothing any more, whoever still holds it"
        );
        drop(kept);
    }

    #[tokio::test]
    async fn a_body_that_is_dropped_before_has_not() {
        let places = Places::new(1);
        let kept = delivery(&places);
        drop(Carried::body(Body::from("all"), kept.clone()));
        assert_eq!(places.free(), 0, "its freight is still there");
        drop(kept);
        assert_eq!(places.free(), 1);
    }
}

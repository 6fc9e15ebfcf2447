//! A session with the state database whose parameters are all made [storable](super::text).

use std::fmt;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Error, Row};

use super::text::{Charset, Storable};
use super::{Param, StateError};
use walhook_postgres::error::SourceError;
use walhook_postgres::pg::DatabaseUrl;
use walhook_postgres::row_security;
use walhook_postgres::source;
use walhook_postgres::sql::Connection;
use walhook_postgres::timelines::Primary;

/// What a person does about a refusal, as an addition to a message.
pub(super) fn advice(error: &Error) -> &'static str {
    if row_security::is_refused(error) {
        "; row-level security would hide state from our role: let it see all rows (ALTER ROLE … BYPASSRLS), or \
         switch row-level security off on the state tables"
    } else if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        "; run `walhook setup --admin-url`, which grants our role what it needs"
    } else {
        ""
    }
}

/// The session. It has no method that takes a parameter as it is.
#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    charset: Charset,
}

/// A transaction in it; rolled back where it is dropped.
pub(super) struct Transaction<'a> {
    inner: tokio_postgres::Transaction<'a>,
    charset: Charset,
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

impl Session {
    pub(super) async fn open(
        url: &DatabaseUrl,
        application_name: &str,
    ) -> Result<Self, StateError> {
        let opened = Connection::open(url, application_name).await;
        let connection = opened.map_err(StateError::Connection)?;
        connection.batch_execute(row_security::NEVER_HIDE).await?;
        let charset = Charset::of(connection.server_encoding());
        Ok(Self { connection, charset })
    }

    pub(super) async fn primary(&self) -> Result<Primary, SourceError> {
        source::primary(&self.connection).await
    }

    pub(super) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    pub(super) async fn closed(&mut self) -> Option<Error> {
        self.connection.closed().await
    }

    pub(super) async fn batch_execute(&self, sql: &str) -> Result<(), Error> {
        self.connection.batch_execute(sql).await
    }

    pub(super) async fn in_one_transaction<T>(
        &self,
        reads: impl Future<Output = Result<T, StateError>>,
    ) -> Result<T, StateError> {
        self.connection.in_one_transaction(reads).await
    }

    pub(super) async fn in_one_snapshot<T>(
        &self,
        reads: impl Future<Output = Result<T, StateError>>,
    ) -> Result<T, StateError> {
        self.connection.in_one_snapshot(reads).await
    }

    pub(super) async fn transaction(&mut self) -> Result<Transaction<'_>, Error> {
        Ok(Transaction { inner: self.connection.transaction().await?, charset: self.charset })
    }
}

impl Transaction<'_> {
    pub(super) async fn batch_execute(&self, sql: &str) -> Result<(), Error> {
        self.inner.batch_execute(sql).await
    }

    pub(super) async fn rollback(self) -> Result<(), Error> {
        self.inner.rollback().await
    }

    pub(super) async fn commit(self) -> Result<(), Error> {
        self.inner.commit().await
    }
}

/// The statements that take parameters, of a session and of a transaction.
macro_rules! statements {
    ($of:ty, $inner:ident) => {
        impl $of {
            pub(super) async fn query_typed(
                &self,
                sql: &str,
                params: &[Param<'_>],
            ) -> Result<Vec<Row>, Error> {
                let storable = storable(params, self.charset);
                self.$inner.query_typed(sql, &typed(&storable, params)).await
            }

            pub(super) async fn query_typed_one(
                &self,
                sql: &str,
                params: &[Param<'_>],
            ) -> Result<Row, Error> {
                let storable = storable(params, self.charset);
                self.$inner.query_typed_one(sql, &typed(&storable, params)).await
            }

            pub(super) async fn query_typed_opt(
                &self,
                sql: &str,
                params: &[Param<'_>],
            ) -> Result<Option<Row>, Error> {
                let storable = storable(params, self.charset);
                self.$inner.query_typed_opt(sql, &typed(&storable, params)).await
            }

            pub(super) async fn execute_typed(
                &self,
                sql: &str,
                params: &[Param<'_>],
            ) -> Result<u64, Error> {
                let storable = storable(params, self.charset);
                self.$inner.execute_typed(sql, &typed(&storable, params)).await
            }
        }
    };
}

statements!(Session, connection);
statements!(Transaction<'_>, inner);

fn storable<'a>(params: &[Param<'a>], charset: Charset) -> Vec<Storable<'a>> {
    params.iter().map(|(value, _)| Storable { value: *value, charset }).collect()
}

fn typed<'a>(storable: &'a [Storable<'a>], params: &[Param<'_>]) -> Vec<Param<'a>> {
    let types = params.iter().map(|(_, ty)| ty.clone());
    storable.iter().zip(types).map(|(value, ty)| (value as _, ty)).collect()
}

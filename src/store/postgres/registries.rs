//! Registries: settings, policy, scanning configuration and account settings.

use std::collections::BTreeMap;

use sqlx::PgPool;
use sqlx::postgres::PgRow;

use super::PostgresStore;
use super::error::TxResult;
use super::rows::{self, get, json};
use crate::StoreResult;
use crate::registries::{RegistryChange, RegistrySettings, RegistryStore};
use wharfage_domain::names::AccountId;

#[async_trait::async_trait]
impl RegistryStore for PostgresStore {
    async fn registry_settings(&self, account: &AccountId) -> StoreResult<RegistrySettings> {
        self.run(|| settings(&self.pool, account)).await
    }

    async fn change_registry(
        &self,
        account: &AccountId,
        change: RegistryChange,
    ) -> StoreResult<RegistrySettings> {
        self.run(|| self::change(&self.pool, account, &change)).await
    }

    async fn list_account_settings(
        &self,
        account: &AccountId,
    ) -> StoreResult<BTreeMap<String, String>> {
        self.run(|| list_account_settings(&self.pool, account)).await
    }

    async fn put_account_setting(
        &self,
        account: &AccountId,
        name: &str,
        value: &str,
    ) -> StoreResult<()> {
        self.run(|| put_account_setting(&self.pool, account, name, value)).await
    }
}

pub(super) async fn settings(pool: &PgPool, account: &AccountId) -> TxResult<RegistrySettings> {
    let sql =
        "SELECT policy, scanning, version, policy_version FROM registry WHERE account_id = $1";
    let found = sqlx::query(sql).bind(account.as_str()).fetch_optional(pool).await?;
    Ok(found.as_ref().map(registry_settings).transpose()?.unwrap_or_default())
}

fn registry_settings(row: &PgRow) -> StoreResult<RegistrySettings> {
    let scanning =
        get::<Option<String>>(row, "scanning")?.map(|text| rows::from_json(&text)).transpose()?;
    Ok(RegistrySettings {
        policy: get(row, "policy")?,
        scanning: scanning.unwrap_or_default(),
        version: rows::unsigned(row, "version")?,
        policy_version: rows::unsigned(row, "policy_version")?,
    })
}

pub(super) async fn change(
    pool: &PgPool,
    account: &AccountId,
    change: &RegistryChange,
) -> TxResult<RegistrySettings> {
    let mut tx = pool.begin().await?;
    sqlx::query("INSERT INTO registry (account_id, version, policy_version) VALUES ($1, 0, 0) ON CONFLICT DO NOTHING")
        .bind(account.as_str())
        .execute(&mut *tx)
        .await?;
    // The lock ensures that of two concurrent deletions of the policy only one sees it.
    let sql = "SELECT policy, scanning, version, policy_version FROM registry WHERE account_id = $1 FOR NO KEY UPDATE";
    let before = sqlx::query(sql).bind(account.as_str()).fetch_one(&mut *tx).await?;
    let (update, value) = match change {
        RegistryChange::Policy(policy) => (
            "UPDATE registry SET version = version + 1, policy_version = policy_version + 1, policy = $2
             WHERE account_id = $1",
            policy.clone(),
        ),
        RegistryChange::Scanning(scanning) => {
            ("UPDATE registry SET version = version + 1, scanning = $2 WHERE account_id = $1", Some(json(scanning)?))
        }
    };
    sqlx::query(update).bind(account.as_str()).bind(value).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(registry_settings(&before)?)
}

pub(super) async fn list_account_settings(
    pool: &PgPool,
    account: &AccountId,
) -> TxResult<BTreeMap<String, String>> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT name, value FROM account_setting WHERE account_id = $1")
            .bind(account.as_str())
            .fetch_all(pool)
            .await?;
    Ok(rows.into_iter().collect())
}

pub(super) async fn put_account_setting(
    pool: &PgPool,
    account: &AccountId,
    name: &str,
    value: &str,
) -> TxResult<()> {
    sqlx::query(
        "WITH registry AS (
             INSERT INTO registry AS r (account_id, policy_version) VALUES ($1, 0)
             ON CONFLICT (account_id) DO UPDATE SET version = r.version + 1)
         INSERT INTO account_setting (account_id, name, value) VALUES ($1, $2, $3)
         ON CONFLICT (account_id, name) DO UPDATE SET value = excluded.value",
    )
    .bind(account.as_str())
    .bind(name)
    .bind(value)
    .execute(pool)
    .await?;
    Ok(())
}

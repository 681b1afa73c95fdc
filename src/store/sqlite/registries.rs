//! Registries: settings, policy, scanning configuration and account settings.

use std::collections::BTreeMap;

use super::SqliteStore;
use super::db::Db;
use super::rows::{self, text_or_null};
use crate::StoreResult;
use crate::registries::{RegistryChange, RegistrySettings, RegistryStore};
use wharfage_domain::names::AccountId;

#[async_trait::async_trait]
impl RegistryStore for SqliteStore {
    async fn registry_settings(&self, account: &AccountId) -> StoreResult<RegistrySettings> {
        self.readers.read(|db| settings(db, account))
    }

    async fn change_registry(
        &self,
        account: &AccountId,
        change: RegistryChange,
    ) -> StoreResult<RegistrySettings> {
        let account = account.clone();
        self.writer.write(move |db| self::change(db, &account, &change)).await
    }

    async fn list_account_settings(
        &self,
        account: &AccountId,
    ) -> StoreResult<BTreeMap<String, String>> {
        self.readers.read(|db| list_account_settings(db, account))
    }

    async fn put_account_setting(
        &self,
        account: &AccountId,
        name: &str,
        value: &str,
    ) -> StoreResult<()> {
        let (account, name, value) = (account.clone(), name.to_owned(), value.to_owned());
        self.writer.write(move |db| put_account_setting(db, &account, &name, &value)).await
    }
}

pub(super) fn settings(db: Db<'_>, account: &AccountId) -> StoreResult<RegistrySettings> {
    let sql =
        "SELECT policy, scanning, version, policy_version FROM registry WHERE account_id = ?1";
    let found = db.first(sql, [account.as_str()], |row| {
        let scanning = text_or_null(row, 1)?.map(rows::from_json).transpose()?;
        Ok(RegistrySettings {
            policy: row.get(0)?,
            scanning: scanning.unwrap_or_default(),
            version: rows::unsigned(row.get(2)?)?,
            policy_version: rows::unsigned(row.get(3)?)?,
        })
    })?;
    Ok(found.unwrap_or_default())
}

pub(super) fn change(
    db: Db<'_>,
    account: &AccountId,
    change: &RegistryChange,
) -> StoreResult<RegistrySettings> {
    let before = settings(db, account)?;
    let sql = "INSERT INTO registry (account_id, version, policy_version) VALUES (?1, 0, 0) ON CONFLICT DO NOTHING";
    db.run(sql, [account.as_str()])?;
    match change {
        RegistryChange::Policy(policy) => {
            let sql = "UPDATE registry SET version = version + 1, policy_version = policy_version + 1, policy = ?2 \
                       WHERE account_id = ?1";
            db.run(sql, (account.as_str(), policy))?
        }
        RegistryChange::Scanning(scanning) => {
            let scanning = rows::json(scanning)?;
            let sql =
                "UPDATE registry SET version = version + 1, scanning = ?2 WHERE account_id = ?1";
            db.run(sql, (account.as_str(), scanning))?
        }
    };
    Ok(before)
}

pub(super) fn list_account_settings(
    db: Db<'_>,
    account: &AccountId,
) -> StoreResult<BTreeMap<String, String>> {
    let sql = "SELECT name, value FROM account_setting WHERE account_id = ?1";
    Ok(db.all(sql, [account.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect())
}

pub(super) fn put_account_setting(
    db: Db<'_>,
    account: &AccountId,
    name: &str,
    value: &str,
) -> StoreResult<()> {
    let sql = "INSERT INTO account_setting (account_id, name, value) VALUES (?1, ?2, ?3) \
               ON CONFLICT DO UPDATE SET value = excluded.value";
    db.run(sql, [account.as_str(), name, value])?;
    let sql = "INSERT INTO registry (account_id, policy_version) VALUES (?1, 0) \
               ON CONFLICT DO UPDATE SET version = version + 1";
    db.run(sql, [account.as_str()]).map(drop)
}

/*
 * What a VM with remote memory cannot have, asked when it is about to get it.
 * All but the last are true where there is no remote memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_REMOTE_MEMORY_H
#define MIGRATION_REMOTE_MEMORY_H

/* Under the BQL.  @what ends a sentence: "a balloon". */
bool remote_memory_allows(const char *what, Error **errp);
/* A block node by direct I/O, which page-out by write protection would lose. */
bool remote_memory_allows_direct_io(Error **errp);
/* Migration capabilities, as in MigrationState.  Under the BQL. */
bool remote_memory_allows_caps(const bool *caps, Error **errp);
/*
 * True while a server is lost, and while the VM is stopped for one in the
 * middle of an instruction: it must not be saved or migrated.
 */
bool remote_memory_stopped(Error **errp);

#endif

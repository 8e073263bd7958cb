/* SPDX-License-Identifier: BSD-3-Clause */
/* The few things that Rust cannot say to nbdkit itself: calls to variadic functions, and output
 * through C's stdio. Messages are data here and never become a format. */
#ifndef NBD_SHIM_H
#define NBD_SHIM_H

#include <stddef.h>

/* nbdkit_error with a finished message. */
void nbd_shim_error (const char *message);

/* nbdkit_debug with a finished message. */
void nbd_shim_debug (const char *message);

/* One line on standard output, through the buffer that nbdkit's own --dump-plugin uses. */
void nbd_shim_print (const char *line);

/* Writes what was printed; 0 if all of it could be. */
int nbd_shim_flush (void);

/* Family and address of the client of this thread, without its port; how many bytes were written,
 * none if that is not known. nbdkit_peer_name is not needed to load the plugin. */
size_t nbd_shim_peer_host (unsigned char *host, size_t size);

#endif /* NBD_SHIM_H */

/* SPDX-License-Identifier: BSD-3-Clause */
/* The few things that Rust cannot say to nbdkit itself: calls to variadic functions, and output
 * through C's stdio. Messages are data here and never become a format. */
#ifndef NBD_SHIM_H
#define NBD_SHIM_H

/* nbdkit_error with a finished message. */
void nbd_shim_error (const char *message);

/* nbdkit_debug with a finished message. */
void nbd_shim_debug (const char *message);

/* One line on standard output, through the buffer that nbdkit's own --dump-plugin uses. */
void nbd_shim_print (const char *line);

#endif /* NBD_SHIM_H */

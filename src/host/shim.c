/* SPDX-License-Identifier: BSD-3-Clause */
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "nbd-shim.h"

#pragma weak nbdkit_peer_name

void
nbd_shim_error (const char *message)
{
  nbdkit_error ("%s", message);
}

void
nbd_shim_debug (const char *message)
{
  nbdkit_debug ("%s", message);
}

void
nbd_shim_print (const char *line)
{
  printf ("%s\n", line);
}

int
nbd_shim_flush (void)
{
  return fflush (stdout) == 0 && !ferror (stdout) ? 0 : -1;
}

/* Appends bytes where there is room. */
static size_t
append (unsigned char *to, size_t at, size_t size, const void *bytes, size_t n)
{
  if (n > size - at)
    return at;
  memcpy (to + at, bytes, n);
  return at + n;
}

size_t
nbd_shim_peer_host (unsigned char *host, size_t size)
{
  struct sockaddr_storage address;
  struct sockaddr_in v4;
  struct sockaddr_in6 v6;
  struct sockaddr_vm vm;
  socklen_t length = sizeof address;
  size_t n;

  memset (&address, 0, sizeof address);
  if (!nbdkit_peer_name
      || nbdkit_peer_name ((struct sockaddr *) &address, &length) == -1)
    return 0;
  n = append (host, 0, size, &address.ss_family, sizeof address.ss_family);
  switch (address.ss_family) {
  case AF_INET:
    memcpy (&v4, &address, sizeof v4);
    return append (host, n, size, &v4.sin_addr, sizeof v4.sin_addr);
  case AF_INET6:
    memcpy (&v6, &address, sizeof v6);
    n = append (host, n, size, &v6.sin6_addr, sizeof v6.sin6_addr);
    return append (host, n, size, &v6.sin6_scope_id, sizeof v6.sin6_scope_id);
  case AF_VSOCK:
    memcpy (&vm, &address, sizeof vm);
    return append (host, n, size, &vm.svm_cid, sizeof vm.svm_cid);
  default:
    /* All clients of a Unix socket are on one host. */
    return n;
  }
}

/* SPDX-License-Identifier: BSD-3-Clause */
/* The least that a plugin of nbdkit's can do to forward a request: one send and one receive, over a
 * connection that the thread shares with nobody. It keeps no books, wakes no thread, checks nothing,
 * and knows one form of reply. Where it is not fast, no forwarder within nbdkit is. */

#include <arpa/inet.h>
#include <endian.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

enum { READ = 0, WRITE = 1 };

struct request {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie, offset;
  uint32_t length;
} __attribute__((packed));

struct reply {
  uint32_t magic, error;
  uint64_t cookie;
} __attribute__((packed));

static char *path;
static uint64_t size;
static pthread_key_t key; /* a thread's socket + 1 */

static int
transfer (int fd, struct iovec *pieces, int count, ssize_t (*call) (int, struct msghdr *, int))
{
  while (count > 0) {
    struct msghdr message = { .msg_iov = pieces, .msg_iovlen = count };
    ssize_t n = call (fd, &message, 0);
    if (n <= 0)
      return -1;
    while (count > 0 && (size_t) n >= pieces->iov_len) {
      n -= pieces->iov_len;
      pieces++;
      count--;
    }
    if (count > 0) {
      pieces->iov_base = (char *) pieces->iov_base + n;
      pieces->iov_len -= n;
    }
  }
  return 0;
}

static ssize_t
put (int fd, struct msghdr *message, int flags)
{
  return sendmsg (fd, message, flags | MSG_NOSIGNAL);
}

static int
take (int fd, void *bytes, size_t length)
{
  struct iovec piece = { bytes, length };
  return transfer (fd, &piece, 1, recvmsg);
}

static int
give (int fd, const void *bytes, size_t length)
{
  struct iovec piece = { (void *) bytes, length };
  return transfer (fd, &piece, 1, put);
}

/* NBD_OPT_EXPORT_NAME with an empty name: the oldest way, and the shortest. */
static int
enter (void)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  unsigned char greeting[18], start[4 + 16], end[10];
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (fd == -1)
    return -1;
  strncpy (address.sun_path, path, sizeof address.sun_path - 1);
  memset (start, 0, sizeof start);
  start[3] = 3;
  memcpy (start + 4, "IHAVEOPT", 8);
  start[15] = 1;
  if (connect (fd, (struct sockaddr *) &address, sizeof address) == -1 ||
      take (fd, greeting, sizeof greeting) == -1 || give (fd, start, sizeof start) == -1 ||
      take (fd, end, sizeof end) == -1) {
    close (fd);
    return -1;
  }
  memcpy (&size, end, sizeof size);
  size = be64toh (size);
  return fd;
}

static void
leave (void *value)
{
  close ((intptr_t) value - 1);
}

static int
mine (void)
{
  intptr_t value = (intptr_t) pthread_getspecific (key);
  int fd;

  if (value > 0)
    return value - 1;
  fd = enter ();
  if (fd == -1 || pthread_setspecific (key, (void *) (intptr_t) (fd + 1)) != 0) {
    nbdkit_error ("the server cannot be reached");
    return -1;
  }
  return fd;
}

static int
forward (uint16_t type, void *payload, uint32_t length, uint64_t offset)
{
  struct request request = { .magic = htobe32 (0x25609513),
                             .type = htobe16 (type),
                             .offset = htobe64 (offset),
                             .length = htobe32 (length) };
  struct reply reply;
  struct iovec out[] = { { &request, sizeof request }, { payload, length } };
  struct iovec in[] = { { &reply, sizeof reply }, { payload, length } };
  int fd = mine ();

  if (fd == -1)
    return -1;
  if (transfer (fd, out, type == WRITE ? 2 : 1, put) == -1 ||
      transfer (fd, in, type == READ ? 2 : 1, recvmsg) == -1 || reply.error != 0) {
    nbdkit_error ("the request failed");
    return -1;
  }
  return 0;
}

static void
bare_load (void)
{
  if (pthread_key_create (&key, leave) != 0)
    abort ();
}

static int
bare_config (const char *name, const char *value)
{
  if (strcmp (name, "socket") != 0) {
    nbdkit_error ("unknown parameter");
    return -1;
  }
  path = nbdkit_absolute_path (value);
  return path ? 0 : -1;
}

static void *
bare_open (int readonly)
{
  return mine () == -1 ? NULL : &size;
}

static int64_t
bare_get_size (void *handle)
{
  return size;
}

static int
bare_pread (void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
  return forward (READ, buffer, count, offset);
}

static int
bare_pwrite (void *handle, const void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
  return forward (WRITE, (void *) buffer, count, offset);
}

static struct nbdkit_plugin plugin = {
  .name = "bare",
  .load = bare_load,
  .config = bare_config,
  .open = bare_open,
  .get_size = bare_get_size,
  .pread = bare_pread,
  .pwrite = bare_pwrite,
};

NBDKIT_REGISTER_PLUGIN (plugin)

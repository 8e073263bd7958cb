/* SPDX-License-Identifier: BSD-3-Clause */
/* An nbdkit plugin that only hands requests from thread to thread.
 *
 * It has no server: its data is made up at once. But a request sleeps until others of its client
 * have come, as it would until somebody has received its reply, and the last of each GROUP wakes
 * the others with one system call. So it shows what nbdkit and its threads cost any forwarder
 * before that has moved a byte: a plugin's callback has to keep its thread until it has the data.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <linux/futex.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* Replies that our plugin takes out of the socket at a time when it is busy, about. */
#define GROUP 4

/* Who was left alone at the end of the load goes on after this. */
static const struct timespec patience = { .tv_nsec = 20 * 1000 * 1000 };

struct client {
  pthread_mutex_t lock;
  unsigned round; /* Counts the groups; what its members sleep on. */
  unsigned members;
};

static void
next_round (struct client *client)
{
  client->members = 0;
  __atomic_fetch_add (&client->round, 1, __ATOMIC_RELEASE);
  syscall (SYS_futex, &client->round, FUTEX_WAKE_PRIVATE, GROUP);
}

static void
take_part (struct client *client)
{
  pthread_mutex_lock (&client->lock);
  unsigned round = client->round;
  if (++client->members == GROUP)
    next_round (client);
  pthread_mutex_unlock (&client->lock);

  while (__atomic_load_n (&client->round, __ATOMIC_ACQUIRE) == round) {
    if (syscall (SYS_futex, &client->round, FUTEX_WAIT_PRIVATE, round, &patience) == 0 ||
        errno != ETIMEDOUT)
      continue;
    pthread_mutex_lock (&client->lock);
    if (client->round == round)
      next_round (client);
    pthread_mutex_unlock (&client->lock);
  }
}

static void *
handover_open (int readonly)
{
  (void) readonly;
  struct client *client = calloc (1, sizeof *client);
  if (client != NULL)
    pthread_mutex_init (&client->lock, NULL);
  return client;
}

static int64_t
handover_get_size (void *handle)
{
  (void) handle;
  return INT64_C (1) << 30;
}

static int
handover_pread (void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) offset;
  (void) flags;
  memset (buffer, 1, count);
  take_part (handle);
  return 0;
}

static int
handover_pwrite (void *handle, const void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) buffer;
  (void) count;
  (void) offset;
  (void) flags;
  take_part (handle);
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "handover",
  .open = handover_open,
  .close = free,
  .get_size = handover_get_size,
  .pread = handover_pread,
  .pwrite = handover_pwrite,
};

NBDKIT_REGISTER_PLUGIN (plugin)

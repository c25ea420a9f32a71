// A library for LD_PRELOAD: writes each name that a process asks for, and each connection that is no Unix socket, to the
// file named by ASKED.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void tell(const char *call, const char *name) {
  const char *path = getenv("ASKED");
  int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
  if (file < 0) return;
  dprintf(file, "%s %s\n", call, name ? name : "");
  close(file);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
      dlsym(RTLD_NEXT, "getaddrinfo");
  tell("getaddrinfo", name);
  return real(name, service, hints, found);
}

struct hostent *gethostbyname(const char *name) {
  struct hostent *(*real)(const char *) = dlsym(RTLD_NEXT, "gethostbyname");
  tell("gethostbyname", name);
  return real(name);
}

int connect(int socket, const struct sockaddr *address, socklen_t size) {
  int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
  if (address && address->sa_family != AF_UNIX) tell("connect", "");
  return real(socket, address, size);
}

ssize_t sendto(int socket, const void *data, size_t count, int flags, const struct sockaddr *address, socklen_t size) {
  ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
  if (address && address->sa_family != AF_UNIX) tell("sendto", "");
  return real(socket, data, count, flags, address, size);
}

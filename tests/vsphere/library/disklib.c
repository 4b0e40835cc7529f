/* A stand-in for a proprietary disk library, for Understudy's tests. It is NOT VMware's VDDK and holds nothing of it.
 *
 * nbdkit's vddk plugin finds functions of a library by their names; these are those names, with an implementation of
 * our own that serves plain local files. The layouts below are the facts that the plugin and a library must agree on.
 * Tests build it into a temporary directory that looks like an unpacked kit. It is installed nowhere.
 *
 * It is strict: what the real one may let pass is refused here, for its refusals are what the tests are for.
 *
 * Environment: UNDERSTUDY_DISKLIB_FACTS, a JSON file that says who may connect and which disks there are; it is read
 * for each connection and each disk that is opened.
 * UNDERSTUDY_DISKLIB_LOG, a file that gets a line for each call; never the password, only whether it was right.
 * UNDERSTUDY_DISKLIB_FAULTS, a file of lines "NAME NUMBER" that is read again for each call; see fault().
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

enum { SECTOR = 512, MIN_CHUNK = 128, MAX_CHUNKS = 512 * 1024 };
enum { FIELD = 1024, MOST_DISKS = 64 };

/* Error numbers; the words are below, in error_words(). */
enum {
    OK = 0,
    NO_MEMORY = 2,
    INVALID_ARGUMENT = 3,
    NOT_FOUND = 4,
    NOT_SUPPORTED = 6,
    DISK_FULL = 8,
    NO_ACCESS = 13,
    BAD_CREDENTIALS = 3014,
    NO_CONTACT = 14008,
    CONNECTION_REFUSED = 14009,
    CONNECTION_LOST = 14011,
    OUT_OF_RANGE = 16007,
    CERTIFICATE = 18000,
    ASYNC = 25000,
};

enum { OPEN_READ_ONLY = 1 << 2 };
enum { CREDENTIALS_PASSWORD = 1 };
enum { OBJECT_VM = 0 };

typedef uint64_t error_t64;
typedef void log_function(const char *format, va_list arguments);
typedef void completion(void *data, error_t64 result);

/* What a caller connects with. */
struct connect_params {
    char *vm;
    char *server;
    char *thumbprint;
    long private_use;
    int credential_kind;
    union {
        struct {
            char *user;
            char *password;
        } password;
        struct {
            char *cookie;
            char *user;
            char *key;
        } session;
        void *ticket;
    } credentials;
    uint32_t port;
    uint32_t nfc_port;
    char *api_version;
    char reserved[8];
    void *state;
    struct {
        char *id;
        char *datastore;
        char *snapshot;
    } storage_object;
    int object_kind;
    /* A later plugin may know more, and write it. */
    char later[256];
};

struct geometry {
    uint32_t cylinders, heads, sectors;
};

struct disk_info {
    struct geometry bios, physical;
    uint64_t capacity;
    int adapter;
    int links;
    char *parent;
    char *uuid;
    uint32_t logical_sector, physical_sector;
};

struct block {
    uint64_t offset, length;
};

struct block_list {
    uint32_t count;
    struct block blocks[];
};

struct connection {
    char vm[FIELD];
    char snapshot[FIELD];
    bool read_only;
    char session[FIELD];
    long requests;
};

struct fact {
    char vm[FIELD], path[FIELD], file[FIELD], snapshot[FIELD];
    bool writable;
};

struct facts {
    char user[FIELD], password[FIELD], thumbprint[FIELD];
    int count;
    struct fact disks[MOST_DISKS];
};

struct disk {
    struct connection *connection;
    char path[FIELD];
    int file;
    uint64_t capacity;
    bool read_only;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static log_function *say_info, *say_warning;
static long reads, writes, flushes, opened;
static uint64_t written;

/* ---- words ---- */

static const char *error_words(error_t64 error)
{
    switch (error) {
    case OK: return "The operation was successful";
    case NO_MEMORY: return "Memory allocation failed. Out of memory";
    case INVALID_ARGUMENT: return "One of the parameters was invalid";
    case NOT_FOUND: return "A file was not found";
    case NOT_SUPPORTED: return "The operation is not supported";
    case DISK_FULL: return "The file system is full";
    case NO_ACCESS: return "You do not have access rights to this file";
    case BAD_CREDENTIALS: return "Insufficient permissions in the host operating system";
    case NO_CONTACT: return "The specified server could not be contacted";
    case CONNECTION_REFUSED: return "The server refused connection";
    case CONNECTION_LOST: return "The connection was lost";
    case OUT_OF_RANGE: return "The requested operation is outside of the disk";
    case CERTIFICATE: return "Cannot connect to host";
    default: return "Unknown error";
    }
}

static void say(log_function *function, const char *format, ...)
{
    va_list arguments;
    if (function == NULL)
        return;
    va_start(arguments, format);
    function(format, arguments);
    va_end(arguments);
}

/* One line, in one write: several processes share the file. */
static void note(const char *format, ...)
{
    const char *path = getenv("UNDERSTUDY_DISKLIB_LOG");
    va_list arguments;
    char *line;
    int file, length;
    if (path == NULL)
        return;
    va_start(arguments, format);
    length = vasprintf(&line, format, arguments);
    va_end(arguments);
    if (length < 0)
        return;
    file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || write(file, line, length) != length)
        say(say_warning, "stand-in: cannot write its log %s", path);
    if (file >= 0)
        close(file);
    free(line);
}

static const char *text(const char *value)
{
    return value != NULL ? value : "";
}

/* ---- the facts: JSON of one object with strings, and a list of objects with strings and truth values ---- */

static void skip_space(const char **text_at)
{
    *text_at += strspn(*text_at, " \t\r\n,");
}

/* A string into "out"; what does not fit, or no string, is an error. */
static bool parse_string(const char **text_at, char *out, size_t size)
{
    const char *at = *text_at;
    unsigned code;
    size_t length = 0;
    if (*at++ != '"')
        return false;
    while (*at != '"') {
        if (*at == '\0' || length + 4 >= size)
            return false;
        if (*at != '\\') {
            out[length++] = *at++;
        } else if (at[1] != 'u') {
            const char *plain = strchr("nrtbf", at[1]);
            out[length++] = plain != NULL ? "\n\r\t\b\f"[plain - "nrtbf"] : at[1];
            at += 2;
        } else {
            /* As UTF-8; nothing in the tests is outside of the basic plane. */
            if (sscanf(at + 2, "%4x", &code) != 1 || (code >= 0xD800 && code < 0xE000))
                return false;
            if (code < 0x80) {
                out[length++] = code;
            } else if (code < 0x800) {
                out[length++] = 0xC0 | code >> 6;
                out[length++] = 0x80 | (code & 0x3F);
            } else {
                out[length++] = 0xE0 | code >> 12;
                out[length++] = 0x80 | (code >> 6 & 0x3F);
                out[length++] = 0x80 | (code & 0x3F);
            }
            at += 6;
        }
    }
    out[length] = '\0';
    *text_at = at + 1;
    return true;
}

static char *field(struct facts *facts, struct fact *fact, const char *name)
{
    if (strcmp(name, "user") == 0) return facts->user;
    if (strcmp(name, "password") == 0) return facts->password;
    if (strcmp(name, "thumbprint") == 0) return facts->thumbprint;
    if (strcmp(name, "vm") == 0) return fact->vm;
    if (strcmp(name, "path") == 0) return fact->path;
    if (strcmp(name, "file") == 0) return fact->file;
    if (strcmp(name, "snapshot") == 0) return fact->snapshot;
    return NULL;
}

static bool parse_object(const char **at, struct facts *facts, struct fact *fact);

static bool parse_value(const char **at, struct facts *facts, struct fact *fact, const char *name)
{
    char *known = field(facts, fact, name);
    if (**at == '"')
        return known != NULL && parse_string(at, known, FIELD);
    if (strncmp(*at, "true", 4) == 0 || strncmp(*at, "false", 5) == 0) {
        fact->writable = **at == 't';
        *at += fact->writable ? 4 : 5;
        return true;
    }
    if (**at != '[')
        return false;
    for (++*at, skip_space(at); **at != ']'; skip_space(at))
        if (facts->count == MOST_DISKS || !parse_object(at, facts, &facts->disks[facts->count++]))
            return false;
    ++*at;
    return true;
}

static bool parse_object(const char **at, struct facts *facts, struct fact *fact)
{
    char name[64];
    if (*(*at)++ != '{')
        return false;
    for (skip_space(at); **at != '}'; skip_space(at)) {
        if (!parse_string(at, name, sizeof name))
            return false;
        *at += strspn(*at, " :");
        if (!parse_value(at, facts, fact, name))
            return false;
    }
    ++*at;
    return true;
}

/* What the facts file says now; everything empty if it cannot be understood, and then nobody is let in. */
static struct facts *read_facts(void)
{
    const char *path = getenv("UNDERSTUDY_DISKLIB_FACTS"), *at;
    struct facts *facts = calloc(1, sizeof *facts);
    struct fact nobody;
    FILE *file = path != NULL ? fopen(path, "re") : NULL;
    char *content = NULL;
    size_t size = 0;
    if (file == NULL || getdelim(&content, &size, '\0', file) < 0 || (at = content, !parse_object(&at, facts, &nobody))) {
        say(say_warning, "stand-in: there are no facts in %s", text(path));
        memset(facts, 0, sizeof *facts);
    }
    if (file != NULL)
        fclose(file);
    free(content);
    return facts;
}

/* A disk is found by VM, path and snapshot: NOT_FOUND if nobody has such a path, NO_ACCESS if it is another's. */
static error_t64 find_disk(const struct facts *facts, const struct connection *connection, const char *path, struct fact *found)
{
    error_t64 result = NOT_FOUND;
    for (int index = 0; index < facts->count; index++) {
        const struct fact *disk = &facts->disks[index];
        if (strcmp(disk->path, path) != 0)
            continue;
        result = NO_ACCESS;
        if (strcmp(disk->vm, connection->vm) == 0 && strcmp(disk->snapshot, connection->snapshot) == 0) {
            *found = *disk;
            return OK;
        }
    }
    return result;
}

/* The number of a fault, 0 if it is not wanted:
 *     sessions N        at most N connections at the same time, of all processes together
 *     connect CODE      ConnectEx fails so          open CODE      Open fails so
 *     fail-read N       the N-th read of a process fails: it ran out of the host's NFC memory
 *     fail-write N      the N-th write of a process fails: its connection was lost
 *     fail-flush N      the N-th flush of a process fails: its connection was lost
 *     short-session N   after N requests of a connection, all fail: its connection was lost
 *     slow-read-ms N    each read takes so long     full-after N   no more than N bytes of a process can be written
 */
static long fault(const char *name)
{
    const char *path = getenv("UNDERSTUDY_DISKLIB_FAULTS");
    FILE *faults = path != NULL ? fopen(path, "re") : NULL;
    char key[64];
    long value, found = 0;
    while (faults != NULL && fscanf(faults, "%63s %ld", key, &value) == 2)
        if (strcmp(key, name) == 0)
            found = value;
    if (faults != NULL)
        fclose(faults);
    return found;
}

/* ---- sessions: a file for each connection beside the log, named by the process ---- */

static int live_sessions(const char *directory)
{
    DIR *listing = opendir(directory);
    struct dirent *entry;
    int count = 0;
    while (listing != NULL && (entry = readdir(listing)) != NULL)
        if (atoi(entry->d_name) > 0 && kill(atoi(entry->d_name), 0) == 0)
            count++;
    if (listing != NULL)
        closedir(listing);
    return count;
}

static bool begin_session(struct connection *connection)
{
    const char *path = getenv("UNDERSTUDY_DISKLIB_LOG");
    char directory[900];
    int file;
    long most = fault("sessions");
    if (path == NULL)
        return true;
    snprintf(directory, sizeof directory, "%s.sessions", path);
    mkdir(directory, 0700);
    if (most > 0 && live_sessions(directory) >= most)
        return false;
    snprintf(connection->session, sizeof connection->session, "%s/%d.%ld", directory, getpid(), ++opened);
    file = open(connection->session, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (file >= 0)
        close(file);
    return file >= 0;
}

/* ---- the library ---- */

PUBLIC error_t64 VixDiskLib_InitEx(
    uint32_t major, uint32_t minor, log_function *info, log_function *warning, log_function *panic, const char *directory,
    const char *config)
{
    (void)panic;
    say_info = info;
    say_warning = warning;
    note("InitEx\tmajor=%u\tminor=%u\tlibdir=%s\tconfig=%s\n", major, minor, text(directory), text(config));
    return getenv("UNDERSTUDY_DISKLIB_FACTS") != NULL ? OK : INVALID_ARGUMENT;
}

PUBLIC void VixDiskLib_Exit(void)
{
    note("Exit\n");
}

PUBLIC char *VixDiskLib_GetErrorText(error_t64 error, const char *locale)
{
    (void)locale;
    return strdup(error_words(error));
}

PUBLIC void VixDiskLib_FreeErrorText(char *words)
{
    free(words);
}

PUBLIC const char *VixDiskLib_ListTransportModes(void)
{
    return "nbdssl:nbd";
}

PUBLIC struct connect_params *VixDiskLib_AllocateConnectParams(void)
{
    return calloc(1, sizeof(struct connect_params));
}

PUBLIC void VixDiskLib_FreeConnectParams(struct connect_params *params)
{
    /* The caller's strings are the caller's. */
    free(params);
}

static bool same(const char *fact, const char *given)
{
    return *fact != '\0' && strcmp(fact, text(given)) == 0;
}

static bool has_vm(const struct facts *facts, const char *vm)
{
    for (int index = 0; index < facts->count; index++)
        if (strcmp(facts->disks[index].vm, vm) == 0)
            return true;
    return false;
}

/* Whether these parameters are let in; says why not. */
static error_t64 admit(const struct facts *facts, const struct connect_params *params, bool read_only, const char *snapshot)
{
    const char *vm = text(params->vm);
    if (fault("connect") != 0)
        return fault("connect");
    if (*facts->thumbprint == '\0' || strcasecmp(facts->thumbprint, text(params->thumbprint)) != 0) {
        say(say_info, "VixDiskLibVim: Failed to verify SSL certificate: actual thumbprint=(of the stand-in) expected=%s",
            text(params->thumbprint));
        return CERTIFICATE;
    }
    if (params->credential_kind != CREDENTIALS_PASSWORD)
        return NOT_SUPPORTED;
    if (!same(facts->user, params->credentials.password.user)
        || !same(facts->password, params->credentials.password.password))
        return BAD_CREDENTIALS;
    if (params->object_kind != OBJECT_VM || strncmp(vm, "moref=", 6) != 0)
        return INVALID_ARGUMENT;
    if (!has_vm(facts, vm + 6))
        return NOT_FOUND;
    if (!read_only && *text(snapshot) != '\0')
        return NOT_SUPPORTED;
    return OK;
}

PUBLIC error_t64 VixDiskLib_ConnectEx(
    const struct connect_params *params, char read_only, const char *snapshot, const char *transports,
    struct connection **connected)
{
    struct connection *connection;
    struct facts *facts = read_facts();
    bool by_password = params->credential_kind == CREDENTIALS_PASSWORD;
    error_t64 result = admit(facts, params, read_only, snapshot);
    note("ConnectEx\tserver=%s\tport=%u\tuser=%s\tpassword=%s\tthumbprint=%s\tvm=%s\tread_only=%d\tsnapshot=%s\ttransports=%s\n",
         text(params->server), params->port, by_password ? text(params->credentials.password.user) : "",
         by_password && same(facts->password, params->credentials.password.password) ? "right" : "wrong",
         text(params->thumbprint), text(params->vm), read_only, text(snapshot), text(transports));
    free(facts);
    if (result != OK) {
        say(say_info, "VixDiskLib: VixDiskLib_ConnectEx: Cannot connect. Error %d (%s) at 1.", (int)result, error_words(result));
        return result;
    }
    connection = calloc(1, sizeof *connection);
    snprintf(connection->vm, sizeof connection->vm, "%s", params->vm + 6);
    snprintf(connection->snapshot, sizeof connection->snapshot, "%s", text(snapshot));
    connection->read_only = read_only;
    pthread_mutex_lock(&lock);
    if (!begin_session(connection)) {
        pthread_mutex_unlock(&lock);
        free(connection);
        say(say_warning, "[NFC ERROR] NfcNewAuthdConnectionEx: Failed to connect to peer: too many sessions");
        return CONNECTION_REFUSED;
    }
    pthread_mutex_unlock(&lock);
    *connected = connection;
    return OK;
}

PUBLIC error_t64 VixDiskLib_Disconnect(struct connection *connection)
{
    note("Disconnect\n");
    unlink(connection->session);
    free(connection);
    return OK;
}

/* A live disk that is not writable belongs to a VM that runs: not even reading opens it. */
static error_t64 find_file(struct connection *connection, const char *path, bool read_only, struct fact *found)
{
    struct facts *facts = read_facts();
    error_t64 result = find_disk(facts, connection, path, found);
    free(facts);
    if (fault("open") != 0)
        return fault("open");
    if (result != OK)
        return result;
    if (!found->writable && (!read_only || *found->snapshot == '\0'))
        return NO_ACCESS;
    return read_only || !connection->read_only ? OK : NO_ACCESS;
}

static error_t64 open_disk(struct connection *connection, const char *path, uint32_t flags, struct disk *disk)
{
    struct fact found;
    struct stat facts;
    error_t64 result;
    disk->read_only = flags & OPEN_READ_ONLY;
    snprintf(disk->path, sizeof disk->path, "%s", path);
    result = find_file(connection, path, disk->read_only, &found);
    if (result != OK)
        return result;
    disk->file = open(found.file, (disk->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (disk->file < 0)
        return errno == ENOENT ? NOT_FOUND : NO_ACCESS;
    /* Others keep off while it is open: the simulator neither starts such a VM nor merges what is being read. */
    if (flock(disk->file, (disk->read_only ? LOCK_SH : LOCK_EX) | LOCK_NB) != 0 || fstat(disk->file, &facts) != 0) {
        close(disk->file);
        return NO_ACCESS;
    }
    if (facts.st_size % SECTOR != 0) {
        close(disk->file);
        return INVALID_ARGUMENT;
    }
    disk->capacity = facts.st_size / SECTOR;
    disk->connection = connection;
    return OK;
}

PUBLIC error_t64 VixDiskLib_Open(struct connection *connection, const char *path, uint32_t flags, struct disk **opened_disk)
{
    struct disk *disk = calloc(1, sizeof *disk);
    error_t64 result;
    note("Open\tpath=%s\tflags=%u\n", text(path), flags);
    result = open_disk(connection, text(path), flags, disk);
    if (result != OK) {
        say(say_info, "VixDiskLib: VixDiskLib_OpenEx: Cannot open disk %s. Error %d (%s) at 1.", text(path), (int)result,
            error_words(result));
        free(disk);
        return result;
    }
    *opened_disk = disk;
    return OK;
}

PUBLIC error_t64 VixDiskLib_Close(struct disk *disk)
{
    note("Close\n");
    close(disk->file);
    free(disk);
    return OK;
}

PUBLIC const char *VixDiskLib_GetTransportMode(struct disk *disk)
{
    (void)disk;
    return "nbdssl";
}

PUBLIC error_t64 VixDiskLib_GetInfo(struct disk *disk, struct disk_info **info)
{
    *info = calloc(1, sizeof **info);
    (*info)->capacity = disk->capacity;
    (*info)->links = 1;
    (*info)->logical_sector = SECTOR;
    (*info)->physical_sector = SECTOR;
    return OK;
}

PUBLIC void VixDiskLib_FreeInfo(struct disk_info *info)
{
    free(info);
}

/* What every request has to pass. */
static error_t64 check(struct disk *disk, uint64_t start, uint64_t count)
{
    long session = fault("short-session");
    long requests;
    pthread_mutex_lock(&lock);
    requests = ++disk->connection->requests;
    pthread_mutex_unlock(&lock);
    if (session > 0 && requests > session) {
        say(say_warning, "[NFC ERROR] NfcNetTcpRead: The connection was lost");
        return CONNECTION_LOST;
    }
    if (count == 0 || start > disk->capacity || count > disk->capacity - start)
        return OUT_OF_RANGE;
    return OK;
}

static error_t64 transfer(struct disk *disk, bool writing, uint64_t start, uint64_t count, uint8_t *bytes)
{
    size_t length = count * SECTOR, done = 0;
    off_t offset = start * SECTOR;
    while (done < length) {
        ssize_t moved = writing ? pwrite(disk->file, bytes + done, length - done, offset + done)
                                : pread(disk->file, bytes + done, length - done, offset + done);
        if (moved <= 0)
            return moved < 0 && errno == ENOSPC ? DISK_FULL : CONNECTION_LOST;
        done += moved;
    }
    return OK;
}

PUBLIC error_t64 VixDiskLib_Read(struct disk *disk, uint64_t start, uint64_t count, uint8_t *bytes)
{
    error_t64 result = check(disk, start, count);
    long number;
    note("Read\tstart=%lu\tcount=%lu\tpath=%s\n", start, count, disk->path);
    if (result != OK)
        return result;
    usleep(1000 * fault("slow-read-ms"));
    pthread_mutex_lock(&lock);
    number = ++reads;
    pthread_mutex_unlock(&lock);
    if (fault("fail-read") == number) {
        say(say_warning, "[NFC ERROR] NfcFssrvrProcessErrorMsg: received NFC error 5 from server: Failed to allocate the"
            " requested %lu bytes", count * SECTOR);
        return NO_MEMORY;
    }
    return transfer(disk, false, start, count, bytes);
}

PUBLIC error_t64 VixDiskLib_Write(struct disk *disk, uint64_t start, uint64_t count, const uint8_t *bytes)
{
    error_t64 result = check(disk, start, count);
    long number, most = fault("full-after");
    note("Write\tstart=%lu\tcount=%lu\n", start, count);
    if (result != OK)
        return result;
    if (disk->read_only)
        return NO_ACCESS;
    pthread_mutex_lock(&lock);
    number = ++writes;
    written += count * SECTOR;
    pthread_mutex_unlock(&lock);
    if (fault("fail-write") == number)
        return CONNECTION_LOST;
    if (most > 0 && written > (uint64_t)most)
        return DISK_FULL;
    return transfer(disk, true, start, count, (uint8_t *)bytes);
}

/* The result reaches the caller before this returns: a caller may not rely on anything else. */
PUBLIC error_t64 VixDiskLib_ReadAsync(
    struct disk *disk, uint64_t start, uint64_t count, uint8_t *bytes, completion *completed, void *data)
{
    completed(data, VixDiskLib_Read(disk, start, count, bytes));
    return ASYNC;
}

PUBLIC error_t64 VixDiskLib_WriteAsync(
    struct disk *disk, uint64_t start, uint64_t count, const uint8_t *bytes, completion *completed, void *data)
{
    completed(data, VixDiskLib_Write(disk, start, count, bytes));
    return ASYNC;
}

PUBLIC error_t64 VixDiskLib_Wait(struct disk *disk)
{
    (void)disk;
    return OK;
}

PUBLIC error_t64 VixDiskLib_Flush(struct disk *disk)
{
    long number;
    note("Flush\n");
    pthread_mutex_lock(&lock);
    number = ++flushes;
    pthread_mutex_unlock(&lock);
    if (fault("fail-flush") == number)
        return CONNECTION_LOST;
    return fsync(disk->file) == 0 ? OK : CONNECTION_LOST;
}

PUBLIC error_t64 VixDiskLib_Create(void)
{
    /* Disks are made by the platform, with their VM. */
    return NOT_SUPPORTED;
}

/* ---- allocation: where the file has no holes ---- */

static void add_block(struct block_list **list, uint64_t start, uint64_t end)
{
    struct block *last = (*list)->count > 0 ? &(*list)->blocks[(*list)->count - 1] : NULL;
    if (last != NULL && start <= last->offset + last->length) {
        if (end > last->offset + last->length)
            last->length = end - last->offset;
        return;
    }
    *list = realloc(*list, sizeof **list + ((*list)->count + 1) * sizeof(struct block));
    (*list)->blocks[(*list)->count++] = (struct block){start, end - start};
}

PUBLIC error_t64 VixDiskLib_QueryAllocatedBlocks(
    struct disk *disk, uint64_t start, uint64_t count, uint64_t chunk, struct block_list **answer)
{
    uint64_t unit = chunk * SECTOR, end = (start + count) * SECTOR;
    off_t data = start * SECTOR, hole;
    error_t64 result = check(disk, start, count);
    note("Query\tstart=%lu\tcount=%lu\tchunk=%lu\n", start, count, chunk);
    if (result != OK)
        return result;
    if (chunk < MIN_CHUNK || start % chunk != 0 || count % chunk != 0 || count / chunk > MAX_CHUNKS)
        return INVALID_ARGUMENT;
    *answer = calloc(1, sizeof **answer);
    while ((data = lseek(disk->file, data, SEEK_DATA)) >= 0 && (uint64_t)data < end) {
        uint64_t first = data / unit * unit, last;
        hole = lseek(disk->file, data, SEEK_HOLE);
        last = ((uint64_t)hole + unit - 1) / unit * unit;
        add_block(answer, first / SECTOR, (last < end ? last : end) / SECTOR);
        data = hole;
    }
    return OK;
}

PUBLIC error_t64 VixDiskLib_FreeBlockList(struct block_list *list)
{
    free(list);
    return OK;
}

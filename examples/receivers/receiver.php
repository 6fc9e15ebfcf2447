<?php
// A receiver of walhook's requests: verifies the signature, drops repeats, answers 204, and works then.
//
//     WEBHOOK_SECRET=whsec_... php -S 127.0.0.1:8080 receiver.php
//
// PHP's standard library alone. Prints one line of JSON for each event that is new. What to copy from it is `verify`;
// what stands around it is a toy: a real receiver stores the event and its id in one transaction before it answers.
// WEBHOOK_SEEN names the directory in which this one keeps the ids; left out, one below that of temporary files.

declare(strict_types=1);

const TOLERANCE_SECONDS = 5 * 60;
const BODY_MAX_BYTES = 2 << 20;
const KEY_MIN_BYTES = 24;

/**
 * whsec_ and base64, in either alphabet, is the key itself; any other text is taken as it stands. An exception where it
 * is none: with an empty key anybody could sign.
 */
function key_of(string $secret): string
{
    if (!str_starts_with($secret, 'whsec_')) {
        return $secret;
    }
    $key = base64_decode(strtr(rtrim(substr($secret, 6), '='), '-_', '+/'), true);
    if ($key === false || strlen($key) < KEY_MIN_BYTES) {
        throw new UnexpectedValueException('WEBHOOK_SECRET is not whsec_ and the base64 of a key');
    }
    return $key;
}

/**
 * The event's id, or an exception: the request is not walhook's, or is an old one that somebody kept.
 *
 * Standard Webhooks: base64 of the HMAC-SHA256 of `id.timestamp.body`, behind `v1,`. While a secret is being rotated
 * there are several signatures, separated by spaces, of which one has to match. $body is the bytes as they came.
 */
function verify(string $key, string $id, string $timestamp, string $signatures, string $body, int $now): string
{
    if (!preg_match('/^[0-9]{1,12}$/D', $timestamp)) {
        throw new InvalidArgumentException('no timestamp');
    }
    if (abs($now - (int) $timestamp) > TOLERANCE_SECONDS) {
        throw new InvalidArgumentException('too old, or a clock is wrong');
    }
    $expected = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$timestamp.$body", $key, true));
    foreach (explode(' ', $signatures) as $one) {
        // In constant time: how long it takes tells nothing of the signature.
        if (hash_equals($expected, $one)) {
            return $id;
        }
    }
    throw new InvalidArgumentException('no signature matches');
}

/**
 * What came already: the same event may come twice, after a crash or as a replay. Its id says so. An exception where
 * it cannot be kept: what is acknowledged then would be lost.
 */
function is_new(string $id): bool
{
    $folder = getenv('WEBHOOK_SEEN') ?: sys_get_temp_dir() . '/walhook-receiver';
    is_dir($folder) || @mkdir($folder, 0700);
    // Made by one request alone, however many there are at once.
    $file = $folder . '/' . hash('sha256', $id);
    if (@fopen($file, 'x') !== false) {
        return true;
    }
    if (!is_file($file)) {
        throw new RuntimeException("cannot keep an id in $folder");
    }
    return false;
}

$secret = trim((string) getenv('WEBHOOK_SECRET'));
if ($secret === '') {
    http_response_code(500);
    error_log("set WEBHOOK_SECRET to the secret in the endpoint's row");
    return;
}
if ((int) ($_SERVER['CONTENT_LENGTH'] ?? 0) > BODY_MAX_BYTES) {
    http_response_code(413);
    return;
}
// The bytes as they came: $_POST, or JSON that was read and written again, has another signature.
$body = (string) file_get_contents('php://input');
try {
    $id = verify(
        key_of($secret),
        $_SERVER['HTTP_WEBHOOK_ID'] ?? '',
        $_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? '',
        $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '',
        $body,
        time(),
    );
} catch (InvalidArgumentException $why) {
    error_log('refused: ' . $why->getMessage());
    http_response_code(401);
    return;
} catch (UnexpectedValueException $why) {
    error_log($why->getMessage());
    http_response_code(500);
    return;
}
try {
    $is_new = is_new($id);
} catch (RuntimeException $why) {
    // walhook sends it again.
    error_log($why->getMessage());
    http_response_code(500);
    return;
}
http_response_code(204);
if ($is_new) {
    // What the event is for. Under FPM, fastcgi_finish_request() sends the answer before it.
    function_exists('fastcgi_finish_request') && fastcgi_finish_request();
    file_put_contents('php://stdout', $body . "\n");
}

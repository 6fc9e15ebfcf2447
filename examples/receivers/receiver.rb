#!/usr/bin/env ruby
# A receiver of walhook's requests: verifies the signature, drops repeats, answers 204, and works then.
#
#     WEBHOOK_SECRET=whsec_... ruby receiver.rb [PORT]
#
# Ruby's standard library alone, which has no HTTP server any more: the one below is a toy. What to copy from it is
# `verify`. Prints the port, then one line of JSON for each event that is new. A real receiver stores the event and
# its id in one transaction before it answers.

require "json"
require "openssl"
require "socket"

TOLERANCE_SECONDS = 5 * 60
BODY_MAX_BYTES = 2 << 20
SEEN_MAX = 100_000
KEY_MIN_BYTES = 24

class Refused < StandardError; end

# whsec_ and base64, in either alphabet, is the key itself; any other text is taken as it stands. ArgumentError where it
# is none: with an empty key anybody could sign.
def key_of(secret)
  return secret unless secret.start_with?("whsec_")

  text = secret.delete_prefix("whsec_").sub(/=*\z/, "").tr("-_", "+/")
  # Ruby passes over what is not base64.
  raise ArgumentError, "what follows whsec_ is not base64" unless text.match?(%r{\A[A-Za-z0-9+/]*\z})

  key = text.unpack1("m")
  raise ArgumentError, "it has fewer than #{KEY_MIN_BYTES} bytes" if key.bytesize < KEY_MIN_BYTES

  key
end

# The event's id, or Refused: the request is not walhook's, or is an old one that somebody kept.
#
# Standard Webhooks: base64 of the HMAC-SHA256 of `id.timestamp.body`, behind `v1,`. While a secret is being rotated
# there are several signatures, separated by spaces, of which one has to match. `body` is the bytes as they came.
def verify(key, headers, body, now)
  id, timestamp = headers.fetch("webhook-id", ""), headers.fetch("webhook-timestamp", "")
  raise Refused, "no timestamp" unless timestamp.match?(/\A[0-9]{1,12}\z/)
  raise Refused, "too old, or a clock is wrong" if (now - timestamp.to_i).abs > TOLERANCE_SECONDS

  expected = "v1," + [OpenSSL::HMAC.digest("SHA256", key, "#{id}.#{timestamp}.".b + body.b)].pack("m0")
  signatures = headers.fetch("webhook-signature", "").split(" ")
  # In constant time: how long it takes tells nothing of the signature.
  return id if signatures.any? { |one| OpenSSL.secure_compare(one, expected) }

  raise Refused, "no signature matches"
end

# One request: its headers by their lower-case names, and its body; nil where the client is done.
def read_request(client)
  line = client.gets("\r\n", 8_192) or return nil
  headers = {}
  while (header = client.gets("\r\n", 8_192)) && header != "\r\n"
    name, value = header.chomp.split(":", 2)
    headers[name.downcase] = value.to_s.strip
  end
  length = headers.fetch("content-length", "")
  return [headers, nil] if !line.start_with?("POST ") || !length.match?(/\A[0-9]{1,9}\z/) || length.to_i > BODY_MAX_BYTES

  [headers, client.read(length.to_i)]
end

secret = ENV["WEBHOOK_SECRET"].to_s.strip
abort "set WEBHOOK_SECRET to the secret in the endpoint's row" if secret.empty?
begin
  key = key_of(secret)
rescue ArgumentError => why
  abort "WEBHOOK_SECRET: #{why.message}"
end
seen = {}
lock = Mutex.new
$stdout.sync = true

# What the event is for. It runs beside the answers: a receiver that works first is one that times out.
events = SizedQueue.new(1_000)
Thread.new do
  loop do
    puts JSON.generate(JSON.parse(events.pop))
  rescue StandardError => why
    # One event, too deep say, must not end the work on all others.
    warn "no work on an event: #{why.message}"
  end
end

server = TCPServer.new("127.0.0.1", (ARGV[0] || 8080).to_i)
puts server.addr[1]
loop do
  Thread.new(server.accept) do |client|
    while (headers, body = read_request(client))
      unless body
        client.write("HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        break
      end
      begin
        id = verify(key, headers, body, Time.now.to_f)
        # The same event may come twice: after a crash, or as a replay. Its id says so.
        is_new = lock.synchronize do
          unknown = !seen.key?(id)
          seen[id] = true
          seen.shift if seen.size > SEEN_MAX
          unknown
        end
        events << body if is_new
        client.write("HTTP/1.1 204 No Content\r\n\r\n")
      rescue Refused => why
        warn "refused: #{why.message}"
        client.write("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")
      end
      break if headers["connection"].to_s.downcase == "close"
    end
  rescue SystemCallError, IOError => why
    warn "connection: #{why.message}"
  ensure
    client.close
  end
end
